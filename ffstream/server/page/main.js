// The page: follows the live feed and gives each status to the sections.

import { ApiError, explain, token } from "./api.js";
import { byId, setLink, setText } from "./dom.js";
import * as dreams from "./dreams.js";
import { follow } from "./feed.js";
import { percent } from "./format.js";
import { History } from "./history.js";
import * as layers from "./layers.js";
import * as learning from "./learning.js";
import * as mistakes from "./mistakes.js";
import { describe, describeLost } from "./state.js";
import * as tryit from "./tryit.js";
import * as well from "./well.js";

const history = new History();
let lastAt = null; // when the last status came, in milliseconds

function onStatus(status) {
  if (document.body.className === "lost") history.reload(); // it may have restarted
  setLink("");
  lastAt = performance.now();
  const state = describe(status);
  well.showState(state);
  well.showStatus(status);
  learning.showErrors(status);
  layers.showLayers(status);
  tryit.showStatus(status);
  dreams.showStatus(status);
  history.add(status);
  setText(byId("preset"), status.preset ?? "");
  setText(byId("version"), `ffstream ${status.version ?? ""}`);
  document.title = `${state.word.toLowerCase()} · ${percent(status.window?.error)} · ffstream`;
  if (!performance.getEntriesByName("first-data").length) performance.mark("first-data"); // tools/bench page
}

function onUnavailable(error) {
  well.showState({ name: "failed", word: "No figures", text: `The daemon has no status: ${explain(error)}.` });
}

function onLost(error) {
  const why = error instanceof ApiError ? explain(error) : error instanceof TypeError ? "no connection" : error.message;
  setLink("lost");
  well.showState(describeLost(lastAt === null ? null : (performance.now() - lastAt) / 1000, why));
  document.title = "lost · ffstream";
}

/** Shows the form, and resolves when a token was given. */
function askForToken() {
  const ask = byId("ask");
  setText(byId("ask-error"), token.get() ? "This is not the token of this daemon." : "");
  setLink("asking");
  ask.hidden = false;
  byId("token").focus();
  well.showState({ name: "locked", word: "Token needed", text: "" });
  return new Promise(resolve => {
    byId("ask-form").addEventListener("submit", event => {
      event.preventDefault();
      token.set(byId("token").value.trim());
      byId("token").value = "";
      ask.hidden = true;
      setLink("connecting");
      resolve();
    }, { once: true });
  });
}

/** Marks the section on the screen in the navigation. */
function followSections() {
  const links = new Map([...document.querySelectorAll(".top nav a")].map(link => [link.hash.slice(1), link]));
  const observer = new IntersectionObserver(entries => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      links.forEach(link => link.removeAttribute("aria-current"));
      links.get(target.id).setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-40% 0px -55% 0px" });
  links.forEach((link, id) => observer.observe(byId(id)));
}

learning.setUp(history);
layers.setUp(history);
mistakes.setUp();
tryit.setUp();
dreams.setUp();
followSections();
follow({ onStatus, onUnavailable, onLost, onUnauthorized: askForToken });
