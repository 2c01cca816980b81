// "What do the layers do?": a card for each layer, drawn as what that layer compares.

import { ApiError, explain, getJson } from "./api.js";
import { Chart, axis, colour, timeAxis } from "./charts.js";
import { byId, make, segments, setText, whileVisible } from "./dom.js";
import { count, duration, figure, moment, percent } from "./format.js";
import { dates } from "./learning.js";

const PERIOD_MS = 3000;

// What stands for "right" and "wrong" in a layer that compares …
const NAMES = {
  labels: ["right label", "wrong label"],
  groups: ["units of the right label", "units of the wrong label"],
  images: ["images", "negative images"],
};
export const namesOf = compares => NAMES[compares] ?? ["positive", "negative"];

// What can be drawn over time: name, title of the axis, columns of the record.
const MEASURES = {
  goodness: ["goodness", "goodness", null],
  margin: ["margin", "goodness: right − wrong", "margin"],
  loss: ["loss", "loss", "loss"],
  dead_units: ["dead units", "dead units (%)", "dead_units"],
  weight_norm: ["weight norm", "norm of the weights", "weight_norm"],
};

const FACTS = [
  ["Margin", layer => figure(layer.margin)],
  ["Separation", layer => percent(layer.separation, 1)],
  ["Loss", layer => figure(layer.loss)],
  ["Threshold", layer => figure(layer.threshold)],
  ["Dead units", layer => percent(layer.dead_units, 1)],
  ["Weight norm", layer => figure(layer.weight_norm)],
  ["Decoder error", layer => ((layer.decoder ?? "none") === "none" ? null : percent(layer.decoder_error, 1))],
  ["Time of a step", layer => duration(layer.step_s)],
  ["Queue before it", layer => count(layer.queue_depth)],
  ["Learned up to", layer => count(layer.last_seq)],
  ["Restarts", layer => count(layer.restarts)],
  // Of stages that run in a cluster; null if they are threads of the daemon.
  ["Node", (_, stage) => stage?.node ?? null],
  ["Host", (_, stage) => stage?.host ?? null],
  ["Device", (_, stage) => stage?.device ?? null],
];

let measure = "goodness";
let cards = [];
let record = null;
let evaluated = 0; // samples in the prequential window

export function setUp(history) {
  segments(byId("measure"), "measure", Object.entries(MEASURES).map(([value, [text]]) => [value, text]), measure, chosen => {
    measure = chosen;
    cards.forEach(drawTime);
  });
  history.onChange(() => {
    record = history.data;
    cards.forEach(drawTime);
  });
  let seen = null;
  whileVisible(byId("layers"), PERIOD_MS, async () => {
    if (!cards.length || !evaluated || seen === cards[0].layer.last_seq) return;
    try {
      const answer = await getJson("api/goodness");
      seen = cards[0].layer.last_seq;
      answer.layers.forEach(layer => cards[layer.index]?.showHistogram(layer));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      byId("layers-empty").hidden = false;
      setText(byId("layers-empty"), explain(error));
    }
  });
}

export function showLayers(status) {
  const layers = status.layers ?? [];
  const empty = byId("layers-empty");
  evaluated = status.window?.samples ?? 0;
  empty.hidden = evaluated > 0;
  byId("layers").classList.toggle("unlearned", !evaluated);
  setText(empty, "No samples yet: ffstream replay embedded");
  if (layers.length !== cards.length) {
    cards.forEach(card => card.remove());
    cards = layers.map(layer => new Card(layer));
    byId("layer-cards").replaceChildren(...cards.map(card => card.node));
    cards.forEach(drawTime);
  }
  cards.forEach((card, index) => card.show(layers[index], status.stages?.find(stage => stage.layers.includes(index))));
}

/** Its connection and the shape of what it passes on. */
export const nature = ({ connection, shape }) => (shape.length > 1 ? `${connection}, ${shape.join(" × ")}` : `${connection}, ${count(shape[0])} units`);

const drawTime = card => record?.layers[card.layer.index] && card.showTime(record.columns.time, record.layers[card.layer.index]);

class Card {
  #facts;
  #caption;
  #time;
  #histogram;

  constructor(layer) {
    this.layer = layer;
    this.#facts = FACTS.map(([name]) => ({ name, value: make("dd", { textContent: "–" }) }));
    this.#caption = make("p", { className: "caption" });
    const time = make("div", { className: "chart" });
    const histogram = make("div", { className: "chart" });
    const title = `layer-${layer.index}-title`;
    this.node = make("article", { className: "card layer", "aria-labelledby": title },
      make("header", {}, make("h3", { id: title, textContent: `Layer ${layer.index}` }), make("span", { className: "muted small", textContent: nature(layer) })),
      this.#caption,
      make("dl", { className: "facts" }, ...this.#facts.map(({ name, value }) => make("div", {}, make("dt", { textContent: name }), value))),
      make("div", { className: "charts" }, time, histogram));
    this.#time = new Chart(time);
    this.#histogram = new Chart(histogram);
  }

  show(layer, stage) {
    this.layer = layer;
    FACTS.forEach(([, text], at) => {
      const { value } = this.#facts[at], shown = text(layer, stage);
      value.parentElement.hidden = shown === null;
      setText(value, shown ?? "");
    });
  }

  showTime(time, columns) {
    const [name, title, column] = MEASURES[measure];
    const factor = measure === "dead_units" ? 100 : 1;
    const take = key => (columns[key] ?? []).map(value => (value === null ? null : factor * value));
    const [right, wrong] = namesOf(this.layer.compares);
    const lines = column
      ? [{ name, values: take(column), colour: "right" }]
      : [
        { name: right, values: take("goodness_positive"), colour: "right" },
        { name: wrong, values: take("goodness_negative"), colour: "wrong", dash: "dash" },
        { name: "threshold", values: take("threshold"), colour: "muted", dash: "dot" },
      ].filter(line => line.values.some(value => value !== null));
    const now = () => lines.map(line => `${line.name} ${figure(line.values.findLast(value => value !== null))}`).join(", ");
    const view = {
      label: () => `Layer ${this.layer.index}, ${name} over time: now ${now() || "unknown"}`,
      length: time.length,
      newestFirst: true,
      columns: [["time", at => moment(time[at])], ...lines.map(line => [line.name, at => figure(line.values[at])])],
    };
    this.#time.update(view, () => ({
      data: lines.map(line => ({
        type: "scatter", mode: "lines", name: line.name, x: dates(time), y: line.values, hovertemplate: "%{y:.3g}",
        line: { color: colour(line.colour), width: 2, dash: line.dash },
      })),
      layout: { hovermode: "x unified", xaxis: timeAxis({ nticks: 4 }), yaxis: axis(title), showlegend: lines.length > 1 },
    }));
  }

  showHistogram({ edges, right, wrong, threshold, compares, text }) {
    setText(this.#caption, text);
    const [rightName, wrongName] = namesOf(compares);
    const middles = right.map((_, at) => (edges[at] + edges[at + 1]) / 2);
    const view = {
      label: () => `Layer ${this.layer.index}, histogram of goodness: ${rightName} and ${wrongName}`,
      length: middles.length,
      columns: [
        ["goodness", at => figure(middles[at])],
        [rightName, at => count(right[at])],
        [wrongName, at => count(wrong[at])],
      ],
    };
    const bars = (name, y, fill, shape) => ({
      type: "bar", name, x: middles, y, width: middles.map((_, at) => edges[at + 1] - edges[at]), hovertemplate: "%{y}",
      marker: { color: fill, opacity: 0.65, pattern: { shape, size: 6, solidity: 0.2, fillmode: "overlay", fgcolor: colour("card") } },
    });
    const known = threshold !== null && threshold !== undefined;
    this.#histogram.update(view, () => ({
      data: [bars(rightName, right, colour("right"), ""), bars(wrongName, wrong, colour("wrong"), "/")],
      layout: {
        barmode: "overlay", bargap: 0, hovermode: "x unified", xaxis: axis("goodness"), yaxis: axis("samples", { rangemode: "tozero" }),
        shapes: known ? [{ type: "line", x0: threshold, x1: threshold, y0: 0, y1: 1, yref: "paper", line: { color: colour("muted"), dash: "dot", width: 2 } }] : [],
        annotations: known ? [{ x: threshold, y: 1, yref: "paper", yanchor: "top", xanchor: "left", text: " threshold", showarrow: false, font: { color: colour("muted") } }] : [],
      },
    }));
  }

  remove() {
    this.#time.remove();
    this.#histogram.remove();
  }
}
