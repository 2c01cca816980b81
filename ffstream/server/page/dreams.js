// What the layers dream: images that they make from what they remember of the stream. Only networks with a decoder dream.

import { explain, getJson } from "./api.js";
import { byId, make, setText, whileVisible } from "./dom.js";
import { count } from "./format.js";

const PERIOD_MS = 5000;
const LIMIT = 8; // images of each label

let snapshot = null; // the weights that answer
let drawn = null; // the version on the page
let ask = () => {};

export function setUp() {
  ask = whileVisible(byId("dreams-card"), PERIOD_MS, showDreams);
}

export function showStatus(status) {
  const first = !snapshot?.seq;
  snapshot = status.snapshot;
  byId("dreams-card").hidden = (status.layers?.[0]?.decoder ?? "none") === "none";
  if (first) ask();
}

async function showDreams() {
  if (!snapshot?.seq) setText(byId("dreams-note"), "Nothing is remembered yet.");
  if (!snapshot?.seq || snapshot.version === drawn) return;
  try {
    const { version, seq, labels, layers } = await getJson(`api/dreams?limit=${LIMIT}`);
    drawn = version;
    setText(byId("dreams-note"), `Decoded from remembered activities, after ${count(seq)} samples.`);
    byId("dreams").replaceChildren(...layers.map((rows, layer) => make("div", {},
      make("h4", { textContent: `Layer ${layer}` }),
      make("ul", { className: "plain dreams" }, ...rows.map((images, at) => row(images, labels && labels[at]))))));
  } catch (error) {
    drawn = null;
    byId("dreams").replaceChildren();
    setText(byId("dreams-note"), explain(error));
  }
}

/** `label`: null if the network knows none. */
function row(images, label) {
  const alt = label === null ? "a dream" : `a dream of label ${label}`;
  return make("li", {},
    make("span", { className: "muted", textContent: label ?? "–", "aria-hidden": "true" }),
    ...images.map(png => make("img", { className: "pixels", src: `data:image/png;base64,${png}`, alt })));
}
