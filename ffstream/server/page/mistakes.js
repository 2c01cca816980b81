// "What does it get wrong?": the latest mistakes, confusions, and the error of each label.

import { ApiError, explain, getJson } from "./api.js";
import { bar, byId, make, setText, table, whileVisible } from "./dom.js";
import { compared, count, moment, percent } from "./format.js";

const PERIOD_MS = 3000;
const TABLE_LABELS = 20; // with more, the largest confusions are listed
const LISTED = 20;
const MARGIN = 3000; // it grows when it is first filled, which must not move what is below it under somebody's finger

let newest = null;
let shown = null;

export function setUp() {
  const empty = byId("mistakes-empty");
  whileVisible(byId("mistakes"), PERIOD_MS, async () => {
    try {
      const answer = await getJson("api/mistakes");
      empty.hidden = answer.window_samples > 0;
      setText(empty, "No samples with a label yet: ffstream replay embedded");
      byId("mistakes-body").hidden = !answer.window_samples;
      const text = JSON.stringify(answer);
      if (answer.window_samples && text !== shown) show(answer);
      shown = text;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      empty.hidden = false;
      setText(empty, explain(error));
    }
  }, MARGIN);
}

function show({ window_samples: samples, classes, confusion, per_class: perClass, latest }) {
  const first = latest[0]?.seq ?? 0;
  if (first !== newest) {
    newest = first;
    byId("gallery").replaceChildren(...latest.map(card));
    if (!latest.length) byId("gallery").append(make("li", { className: "muted", textContent: "None in the window." }));
  }
  setText(byId("confusion-title"), `Confusions in the last ${count(samples)} predicted samples`);
  setText(byId("classes-title"), `Error by label in the last ${count(samples)} predicted samples`);
  byId("confusion").replaceChildren(confusions(classes, confusion));
  byId("classes").replaceChildren(errors(perClass));
}

function card({ seq, time, image, label, predicted, scores }) {
  const texts = compared(scores);
  return make("li", { title: `sample ${count(seq)}${time ? `, ${moment(time)}` : ""}` },
    make("img", { className: "pixels", src: `data:image/png;base64,${image}`, alt: `sample ${seq}: a ${label}, read as ${predicted}` }),
    make("p", { className: "said", textContent: `${label} read as ${predicted}` }),
    ...[predicted, label].map(each => make("p", { className: "scores" }, make("span", { className: "hidden", textContent: "score of " }), `${each}: ${texts[each]}`)));
}

function confusions(names, confusion) {
  if (!confusion) return make("p", { className: "muted", textContent: "There are too many labels to count each pair." });
  return names.length <= TABLE_LABELS ? matrix(names, confusion) : largest(names, confusion);
}

/** Rows: true labels. The shade of a cell is its share of the row; right answers and mistakes have colours of their own. */
function matrix(names, confusion) {
  const rows = confusion.map((row, label) => {
    const total = row.reduce((sum, value) => sum + value, 0);
    return [String(names[label]), ...row.map((value, predicted) => cell(value, total, label === predicted))];
  });
  const node = table("Rows: true label. Columns: predicted label. Cells: samples.", ["true \\ read as", ...names.map(String)], []);
  node.className = "confusion";
  const head = node.tHead.rows[0].cells[0];
  head.replaceChildren(make("span", { "aria-hidden": "true", textContent: "" }), make("span", { className: "hidden", textContent: "true label, by predicted label" }));
  node.tBodies[0].append(...rows.map(([name, ...cells]) => make("tr", {}, make("th", { scope: "row", textContent: name }), ...cells)));
  return make("div", {}, make("p", { className: "muted small", textContent: "rows: true label; columns: read as" }), node);
}

function cell(value, total, isRight) {
  const node = make("td", { textContent: value ? String(value) : "" });
  if (value) {
    const share = value / total;
    node.style.setProperty("--share", isRight ? 8 + 27 * share : 10 + 45 * Math.min(1, 5 * share));
    node.style.setProperty("--cell", isRight ? "var(--right)" : "var(--wrong)");
  }
  return node;
}

function largest(names, confusion) {
  const pairs = confusion.flatMap((row, label) => row.map((value, predicted) => [value, label, predicted]))
    .filter(([value, label, predicted]) => value && label !== predicted).sort(([a], [b]) => b - a).slice(0, LISTED);
  return table("The largest confusions", ["true", "read as", "samples"], pairs.map(([value, label, predicted]) => [String(names[label]), String(names[predicted]), count(value)]));
}

function errors(perClass) {
  const most = Math.max(0.01, ...perClass.map(each => each.error ?? 0));
  return table("Error by label", ["label", "samples", "wrong", "error", ""],
    perClass.map(each => [String(each.label), count(each.samples), count(each.wrong), percent(each.error, 1), bar((each.error ?? 0) / most, "wrong")]));
}
