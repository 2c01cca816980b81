// Marks: what happened to the stream, in the chart and in words.

import { byId, make, setText, table } from "./dom.js";
import { count, moment } from "./format.js";

// Plotly's symbol, the same as text, a name for people, the colour's name in app.css.
export const KINDS = {
  start: ["triangle-right", "▶", "start", "good"],
  checkpoint: ["circle", "●", "checkpoint", "muted"],
  rollback: ["triangle-left", "◀", "rollback", "wrong"],
  drift: ["diamond", "◆", "drift detected", "sleep"],
  pause: ["square", "■", "pause", "warn"],
  resume: ["triangle-right-open", "▷", "resume", "good"],
  interruption: ["cross", "✚", "learning is interrupted", "warn"],
  continuation: ["cross-open", "✢", "learning goes on", "good"],
  gap: ["x", "✕", "gap: the daemon was not running", "muted"],
  wake: ["arrow-up", "↑", "wake phase", "warn"],
  sleep: ["arrow-down", "↓", "sleep phase", "sleep"],
};
const MOST = 50;

const QUIET = ["checkpoint", "wake", "sleep"]; // come often

/** Those of a known kind. */
export const shown = marks => marks.filter(mark => mark.kind in KINDS);

/** Those that get a line through all curves. */
export const notable = marks => shown(marks).filter(mark => !QUIET.includes(mark.kind));

/** The legend below the chart: only kinds that are there. */
export function showLegend(marks) {
  const kinds = [...new Set(shown(marks).map(mark => mark.kind))].sort();
  const list = byId("legend");
  if (list.dataset.kinds === kinds.join()) return;
  list.dataset.kinds = kinds.join();
  list.replaceChildren(...kinds.map(kind => {
    const [, symbol, name, colour] = KINDS[kind];
    const sign = make("span", { className: "mark", textContent: symbol, "aria-hidden": "true" });
    sign.style.setProperty("--mark", `var(--${colour})`);
    return make("li", {}, sign, name);
  }));
}

/** The table of events, newest first; filled while it is open. */
export function showEvents(marks) {
  const details = byId("events");
  setText(details.querySelector("summary"), `Events in words (${count(marks.length)})`);
  if (!details.open) return;
  const rows = marks.slice(-MOST).reverse().map(mark => [moment(mark.time), KINDS[mark.kind]?.[2] ?? mark.kind, count(mark.seq), mark.text ?? ""]);
  const box = details.querySelector(".scroll");
  if (!rows.length) setText(box, "None in this time.");
  else box.replaceChildren(table("Events, newest first", ["time", "event", "after sample", ""], rows));
}
