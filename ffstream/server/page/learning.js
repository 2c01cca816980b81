// "Is it learning?": the prequential error and the rate over time, with marks and the sleep band.

import { Chart, axis, colour, timeAxis } from "./charts.js";
import { byId, make, segments, setText } from "./dom.js";
import { count, duration, moment, percent, rate } from "./format.js";
import { SPANS } from "./history.js";
import { KINDS, notable, showEvents, showLegend, shown } from "./marks.js";

const OFFSET_S = 60 * new Date().getTimezoneOffset();
/** Unix seconds as plotly's date axis takes them, in local time. */
export const dates = times => times.map(time => 1000 * (time - OFFSET_S));

const chart = new Chart(byId("curve"));
const figures = [["window", "of the last predicted samples"], ["total", "of the whole stream"], ["drift", ""]].map(([name]) => {
  const value = make("p", { className: "value", textContent: "–" });
  const note = make("p", { className: "muted small" });
  const box = make("div", { hidden: name === "drift" }, value, note);
  byId("errors").append(box);
  return { box, value, note };
});

export function setUp(history) {
  segments(byId("span"), "span", SPANS, history.span, span => history.choose(span));
  byId("log").addEventListener("change", () => draw(history.data));
  byId("events").addEventListener("toggle", () => history.data && showEvents(history.data.marks));
  history.onChange(() => history.data && draw(history.data));
}

export function showErrors(status) {
  const [latest, total, drift] = figures;
  const { error, samples, size } = status.window ?? {};
  setText(latest.value, percent(error));
  setText(latest.note, samples ? `prequential error, last ${windowText(samples, size)}` : "no samples yet: ffstream replay embedded");
  setText(total.value, percent(status.prequential_error_total));
  setText(total.note, "prequential error, whole stream");
  drift.box.hidden = !status.drift_seq;
  setText(drift.value, count(status.drift_seq));
  setText(drift.note, "sample at which drift was last detected");
}

const windowText = (samples, size) =>
  (size && samples < size ? `${count(samples)} predicted samples (window: ${count(size)})` : `${count(samples)} predicted samples`);

function draw(data) {
  if (!data) return;
  const { columns: c, marks } = data;
  showLegend(marks);
  showEvents(marks);
  chart.update(words(c), () => figure(data, byId("log").checked));
}

function words({ time, error, window_error, accepted_rate, rate: learned }) {
  return {
    label: () => {
      const known = window_error.filter(value => value !== null);
      return known.length
        ? `Prequential error over time: now ${percent(known.at(-1))}, lowest ${percent(Math.min(...known))}, highest ${percent(Math.max(...known))}`
        : "Prequential error over time: no samples yet";
    },
    length: time.length,
    newestFirst: true,
    columns: [
      ["time", at => moment(time[at])],
      ["error in the window", at => percent(window_error[at])],
      ["error of the interval", at => percent(error[at])],
      ["accepted", at => rate(accepted_rate[at])],
      ["learned", at => rate(learned[at])],
    ],
  };
}

/** Errors of intervals in which enough samples were learned: that of a single one is 0 or 100 %. */
function ofEnough(error, learned) {
  const usual = learned.filter(value => value > 0).sort((a, b) => a - b);
  const least = (usual[Math.floor(usual.length / 2)] ?? 0) / 10;
  return error.map((value, at) => (learned[at] >= least ? value : null));
}

const scaled = values => values.map(value => (value === null ? null : 100 * value));

function figure({ columns: c, marks, interval_s: seconds }, logarithmic) {
  const x = dates(c.time);
  const sleeps = c.sleep.some(share => share > 0);
  const line = (name, y, yaxis, colour, width, more) => ({ type: "scatter", mode: "lines", name, x, y, yaxis, line: { color: colour, width }, ...more });
  const data = [
    line(`error of each ${seconds === 1 ? "second" : duration(seconds)}`, scaled(ofEnough(c.error, c.rate)), "y", colour("warn"), 1, { opacity: 0.7, hovertemplate: "%{y:.2f} %" }),
    line("error in the window", scaled(c.window_error), "y", colour("right"), 2, { hovertemplate: "%{y:.2f} %" }),
    line("learned", c.rate, "y2", colour("good"), 1.5, { hovertemplate: "%{y:,.0f}/s", fill: "tozeroy", fillcolor: `${colour("good")}2e` }),
    line("accepted", c.accepted_rate, "y2", colour("sleep"), 1, { hovertemplate: "%{y:,.0f}/s", line: { color: colour("sleep"), width: 1.5, dash: "dot" } }),
    ...markTrace(shown(marks)),
  ];
  if (sleeps) data.push(band(x, c.sleep));
  const low = sleeps ? 0.1 : 0;
  const isEmpty = c.window_error.every(error => error === null);
  return {
    data,
    layout: {
      hovermode: "x unified", hoversubplots: "axis",
      xaxis: timeAxis({ anchor: sleeps ? "y4" : "y2" }),
      yaxis: axis("error (%)", { domain: [0.4, 0.95], ...scale(isEmpty, logarithmic) }),
      yaxis2: axis("samples/s", { domain: [low, 0.32], rangemode: "tozero", nticks: 4 }),
      yaxis3: { domain: [0.95, 1], range: [0, 1], visible: false, fixedrange: true },
      yaxis4: { domain: [0, 0.045], fixedrange: true, showgrid: false, zeroline: false, tickvals: [0], ticktext: ["sleep"] },
      annotations: !isEmpty ? [] : [{
        text: "no samples yet: ffstream replay embedded", x: 0.5, y: 0.7, xref: "paper", yref: "paper", showarrow: false, font: { size: 14 },
      }],
      shapes: notable(marks).map(rule),
    },
  };
}

function scale(isEmpty, logarithmic) {
  if (isEmpty) return { range: [0, 100] };
  return logarithmic ? { type: "log" } : { type: "linear", rangemode: "tozero" };
}

/** The share of each interval in the sleep phase, as a strip below the curves. */
function band(x, share) {
  const clear = colour("grid");
  return {
    type: "heatmap", x, y: [0], z: [share.map(value => value ?? 0)], yaxis: "y4", zmin: 0, zmax: 1, showscale: false, name: "sleep",
    colorscale: [[0, clear], [1, colour("sleep")]], hovertemplate: "%{z:.0%} asleep<extra></extra>",
  };
}

function markTrace(marks) {
  if (!marks.length) return [];
  const of = at => marks.map(mark => KINDS[mark.kind][at]);
  return [{
    type: "scatter", mode: "markers", x: dates(marks.map(mark => mark.time)), y: marks.map(() => 0.5), yaxis: "y3", showlegend: false,
    marker: { symbol: of(0), size: 9, color: of(3).map(colour) },
    text: marks.map(mark => mark.text || KINDS[mark.kind][2]), hovertemplate: "%{text}<extra></extra>", cliponaxis: false,
  }];
}

const rule = mark => ({
  type: "line", x0: dates([mark.time])[0], x1: dates([mark.time])[0], y0: 0, y1: 1, yref: "paper",
  line: { color: colour(KINDS[mark.kind][3]), width: 1, dash: "dot" },
});
