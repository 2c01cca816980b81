// "Try it": what the network says about the image on the board, and teaching it a label.

import { explain, getJson, postJson, teachToken } from "./api.js";
import { Board, drawImage, pictureShape } from "./board.js";
import { bar, byId, make, setOptions, setText, table, whileVisible } from "./dom.js";
import { compared, count } from "./format.js";
import * as inside from "./inside.js";

const MOST_LABELS = 20; // in the table of scores
const AGAIN_MS = 2000; // the network learns on, so its answer about the same image changes

let board = null;
let shape = null;
let version = null; // of the weights that answer
let answered = null; // what the answer on the page belongs to
let isChosen = false; // whether a person has chosen the label to teach for this image
let ask = () => {};

/** The image on the board, as it is sent; null while the board is empty. */
const image = () => (board && !board.isEmpty ? board.image(byId("centre").checked) : null);

export function setUp() {
  ask = whileVisible(byId("try"), AGAIN_MS, score);
  byId("clear").addEventListener("click", () => board?.clear());
  byId("centre").checked = true;
  byId("centre").addEventListener("change", changed);
  byId("sample").addEventListener("click", loadSample);
  byId("teach").addEventListener("submit", teach);
  byId("teach-label").addEventListener("change", () => { isChosen = true; });
  byId("colour").addEventListener("input", ({ target }) => {
    board.paint = [1, 3, 5].map(at => Number.parseInt(target.value.slice(at, at + 2), 16));
  });
  inside.setUp(image);
}

/** Makes the board when the size of the network's images is known, and keeps the choice of labels. */
export function showStatus(status) {
  version = status.snapshot?.version;
  const labels = Array.from({ length: status.labels }, (_, label) => [label, String(label)]);
  setOptions(byId("sample-label"), [["", "any label"], ...labels]);
  setOptions(byId("teach-label"), labels);
  byId("teach-off").hidden = Boolean(status.teach);
  byId("teach-on").hidden = !status.teach;
  if (!shape) makeBoard(status.image_shape);
  inside.showStatus(status);
}

function makeBoard(imageShape) {
  shape = pictureShape(imageShape);
  board = new Board(byId("board"), shape, changed);
  byId("board").style.aspectRatio = `${shape[1]} / ${shape[0]}`;
  byId("colour-label").hidden = shape[2] < 3;
  byId("centre").checked = shape[2] === 1 && shape[0] > 1;
}

function changed() {
  if (!image()) {
    show(null);
    inside.rightIs("");
  }
  ask();
  inside.changed();
}

async function score() {
  const pixels = image();
  const key = `${version} ${pixels}`;
  if (!pixels || key === answered) return;
  try {
    const found = await postJson("api/scores", { image: pixels });
    if (!image()) return; // cleared meanwhile
    answered = key;
    show(found, pixels);
  } catch (error) {
    setText(byId("board-note"), explain(error));
  }
}

// --- the answer ---

function show(found, pixels) {
  if (!found) {
    answered = null;
    isChosen = false;
    setText(byId("answer"), "Draw something, or load a sample.");
    setText(byId("answer-note"), "");
    byId("scores").replaceChildren();
    return;
  }
  showAnswer(found, pixels);
  byId("scores").replaceChildren(rows(found));
}

function showAnswer({ label, seq }, pixels) {
  const node = byId("answer");
  if (node.dataset.label !== String(label) || !node.firstElementChild) {
    node.dataset.label = label;
    const seen = make("canvas", { className: "seen", width: shape[1], height: shape[0], "aria-hidden": "true" });
    node.replaceChildren(seen, make("span", {}, "It reads ", make("strong", { textContent: String(label) })));
    if (!isChosen) byId("teach-label").value = String(label);
  }
  drawImage(node.firstElementChild.getContext("2d"), pixels, shape);
  setText(byId("answer-note"), `What the network gets, and what it says after ${count(seq)} samples.`);
}

/** A row for each label, or for the best: its score, and the score that each layer gives it. Each column has a scale of
 *  its own. */
function rows({ label, scores, layers }) {
  const all = scores.map((_, at) => at);
  const shown = all.length <= MOST_LABELS ? all : all.sort((a, b) => scores[b] - scores[a]).slice(0, MOST_LABELS);
  const scale = values => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return values.map(value => (high > low ? (value - low) / (high - low) : 0.5));
  };
  const total = scale(scores);
  const texts = compared(scores);
  const each = layers.map((values, layer) => ({ layer, values: values && scale(values) })).filter(({ values }) => values);
  const node = table("Score of each label; the longest bar in a column is that layer's answer",
    ["label", "score", "", ...each.map(({ layer }) => make("span", { title: `layer ${layer}` }, make("span", { className: "hidden", textContent: "layer " }), `L${layer}`))],
    shown.map(at => [String(at), bar(total[at]), texts[at], ...each.map(({ values }) => bar(values[at]))]));
  node.className = "score-rows";
  [...node.tBodies[0].rows].forEach((row, at) => {
    row.className = shown[at] === label ? "best" : "";
    row.cells[1].className = "total";
    row.cells[2].className = "number";
  });
  return node;
}

// --- samples and teaching ---

async function loadSample() {
  const label = byId("sample-label").value;
  try {
    const sample = await getJson(label === "" ? "api/sample" : `api/sample?label=${label}`);
    isChosen = false;
    board.load(sample.image);
    inside.rightIs(sample.label);
    setText(byId("board-note"), `A recent sample, labelled ${sample.label}.`);
  } catch (error) {
    setText(byId("board-note"), explain(error));
  }
}

async function teach(event) {
  event.preventDefault();
  const said = byId("teach-said");
  const pixels = image();
  if (!pixels) {
    setText(said, "Draw something first.");
    return;
  }
  if (byId("teach-token").value) teachToken.set(byId("teach-token").value.trim());
  const label = Number(byId("teach-label").value);
  byId("teach-send").disabled = true;
  try {
    const headers = teachToken.get() ? { "X-FFStream-Teach": teachToken.get() } : {};
    const { accepted } = await postJson("api/teach", { image: pixels, label }, headers);
    setText(said, `Accepted as sample ${count(accepted)}, a ${label}. It is on disk, and will be learned in its turn.`);
    byId("teach-ask").hidden = true;
  } catch (error) {
    if (error.status === 401 || error.status === 403) byId("teach-ask").hidden = false;
    setText(said, explain(error));
  } finally {
    byId("teach-send").disabled = false;
  }
}
