// The layers from inside: activities for one image under the right and a wrong label, and what units look for.

import { explain, getJson, postJson } from "./api.js";
import { drawImage, pictureShape } from "./board.js";
import { colour } from "./charts.js";
import { byId, make, setOptions, setText, whileVisible } from "./dom.js";
import { compared, figure } from "./format.js";
import { namesOf, nature } from "./layers.js";

const PERIOD_MS = 3000;
const IMAGES = ["image", "negative image"];
const LIMIT = 64;
const ASPECT = 3; // width of a drawing of units by its height
const OUTSIDE = 0.5; // how strong units are drawn that do not belong to the label
const FILTERS_MS = 10000;

const WITH_LABELS = "The same image as the layers see it with the right and with a wrong label, side by side.";
const WITHOUT_LABELS = "The image as the layers see it, and a negative image made from it, side by side.";

let version = null; // of the weights that answer
let drawn = null; // what the activities on the page belong to
let drawnFilters = null;
let image = () => null;
let imageShape = null;
let ask = () => {};
let askFilters = () => {};

/** `current()`: the image on the board, or null. */
export function setUp(current) {
  image = current;
  ask = whileVisible(byId("activities").parentElement, PERIOD_MS, showActivities);
  askFilters = whileVisible(byId("filters").parentElement, FILTERS_MS, showFilters);
  for (const id of ["right-label", "wrong-label"]) byId(id).addEventListener("change", ask);
  byId("filters-layer").addEventListener("change", askFilters);
}

export function showStatus(status) {
  imageShape = status.image_shape;
  version = status.snapshot?.version;
  const needsLabels = (status.layers ?? []).some(layer => layer.compares !== "images");
  setText(byId("activities-intro"), needsLabels ? WITH_LABELS : WITHOUT_LABELS);
  byId("activities-labels").hidden = !needsLabels;
  const labels = Array.from({ length: status.labels }, (_, label) => [label, String(label)]);
  setOptions(byId("right-label"), [["", "what it reads"], ...labels]);
  setOptions(byId("wrong-label"), [["", "the strongest"], ...labels]);
  const had = byId("filters-layer").options.length;
  setOptions(byId("filters-layer"), (status.layers ?? []).map(layer => [layer.index, `${layer.index} (${nature(layer)})`]));
  if (!had) askFilters();
}

export const changed = () => ask();

export function rightIs(label) {
  byId("right-label").value = String(label);
}

// --- activities ---

async function showActivities() {
  const pixels = image();
  const empty = byId("activities-empty");
  empty.hidden = Boolean(pixels);
  if (!pixels) {
    setText(empty, "Draw something, or load a sample.");
    byId("activities").replaceChildren();
    drawn = null;
    return;
  }
  const [label, wrong] = ["right-label", "wrong-label"].map(id => byId(id).value);
  const body = { image: pixels, ...(label && { label: Number(label) }), ...(wrong && wrong !== label && { wrong: Number(wrong) }) };
  const key = JSON.stringify([version, body, colour("page")]);
  if (key === drawn) return;
  try {
    const answer = await postJson("api/activities", body);
    drawn = key;
    const layers = answer.layers.map(layer => activities(layer, answer));
    byId("activities").replaceChildren(...(answer.negative ? [pictures(pixels, answer.negative)] : []), ...layers);
  } catch (error) {
    empty.hidden = false;
    setText(empty, explain(error));
  }
}

/** The image and its negative image. */
function pictures(...images) {
  const [height, width, channels] = pictureShape(imageShape);
  return make("div", { className: "pair" }, ...images.map((pixels, at) => {
    const canvas = make("canvas", { className: "seen", width, height, role: "img", "aria-label": IMAGES[at] });
    drawImage(canvas.getContext("2d"), pixels, [height, width, channels]);
    return make("figure", {}, make("figcaption", { textContent: IMAGES[at] }), canvas);
  }));
}

function activities(layer, { label, wrong }) {
  const { index, compares, groups, text } = layer;
  const names = compares === "images" ? IMAGES : namesOf(compares).map((name, at) => `${name} ${[label, wrong][at]}`);
  const goodness = compared([layer.goodness_right, layer.goodness_wrong]);
  const sides = [[layer.right, "right"], [layer.wrong, "wrong"]];
  const most = Math.max(...sides.map(([values]) => largest(values)));
  const panels = sides.map(([values, side], at) =>
    panel(layer, values, { caption: `${names[at]}: goodness ${goodness[at]}`, most, positive: side, negative: "sleep", group: groups?.[at] }));
  if (!groups) panels.push(difference(layer));
  return make("div", {},
    make("h4", { textContent: `Layer ${index}` }),
    make("p", { className: "caption", textContent: text }),
    make("div", { className: "pair activities" }, ...panels));
}

/** The two rows differ less than units do, so their difference has a scale of its own. */
function difference(layer) {
  const values = layer.right.map((value, at) => value - layer.wrong[at]);
  const most = largest(values);
  return panel(layer, values, { caption: `difference, at most ${figure(most)}`, most, positive: "right", negative: "wrong" });
}

const largest = values => Math.max(...values.map(Math.abs), 1e-9);

function panel({ index, shape }, values, { caption, ...look }) {
  return make("figure", {},
    make("figcaption", {}, key(look.positive), caption),
    drawUnits(values, shape, { ...look, label: `Layer ${index}, ${caption}` }));
}

function key(side) {
  const node = make("span", { className: "key", "aria-hidden": "true" });
  node.style.setProperty("--key", `var(--${side})`);
  return node;
}

/** Units as squares: the stronger the activity, the more colour. `shape`: (units), or (height, width, channels), whose
 *  channels are tiles beside each other. Units outside of `group` are grey. */
function drawUnits(values, shape, { most, positive, negative, group, label }) {
  const [background, outsideColour, positiveColour, negativeColour] = ["page", "muted", positive, negative].map(colour);
  const [height, width, tiles] = shape.length === 3 ? shape : [1, 1, values.length];
  const gap = height * width > 1 ? 1 : 0;
  const columns = Math.min(tiles, Math.ceil(Math.sqrt((ASPECT * tiles * (height + gap)) / (width + gap))));
  const canvas = make("canvas", {
    width: columns * (width + gap) - gap, height: Math.ceil(tiles / columns) * (height + gap) - gap, role: "img", "aria-label": label,
  });
  const context = canvas.getContext("2d");
  values.forEach((value, at) => {
    const [tile, place] = [at % tiles, Math.floor(at / tiles)];
    const outside = group && (tile < group[0] || tile > group[1]);
    const x = (tile % columns) * (width + gap) + (place % width);
    const y = Math.floor(tile / columns) * (height + gap) + Math.floor(place / width);
    context.globalAlpha = 1;
    context.fillStyle = background;
    context.fillRect(x, y, 1, 1);
    context.globalAlpha = Math.min(1, Math.abs(value) / most) * (outside ? OUTSIDE : 1);
    context.fillStyle = outside ? outsideColour : value < 0 ? negativeColour : positiveColour;
    context.fillRect(x, y, 1, 1);
  });
  return canvas;
}

// --- filters ---

async function showFilters() {
  const layer = byId("filters-layer").value;
  const key = `${version} ${layer}`;
  if (layer === "" || key === drawnFilters) return;
  try {
    const { images, scale } = await getJson(`api/filters?layer=${layer}&limit=${LIMIT}`);
    drawnFilters = key;
    setText(byId("filters-note"), `Weights of the ${images.length} strongest units. Grey is 0, white excites, black inhibits.`);
    byId("filters").replaceChildren(...images.map((png, at) => make("li", {},
      make("img", { className: "pixels", src: `data:image/png;base64,${png}`, alt: `unit ${at}: weights up to ${figure(scale?.[at])}` }))));
  } catch (error) {
    byId("filters").replaceChildren();
    drawnFilters = null;
    setText(byId("filters-note"), explain(error));
  }
}
