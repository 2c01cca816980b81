// Charts, drawn by plotly. Its script is large, so it is loaded after the first figures are shown.
//
// A chart is drawn only while it is on the screen and the tab is shown, at most one in each frame, and again when the
// colour scheme changes. For those who do not see it, it has a sentence and a table.

import { make, setText, table } from "./dom.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const coarse = matchMedia("(pointer: coarse)");
const ROWS = 20;
const HOLD_MS = 5000;

let library;
const loadPlotly = () => (library ??= new Promise((resolve, reject) => {
  const script = make("script", { src: "page/plotly.js", async: true });
  script.addEventListener("load", () => resolve(globalThis.Plotly));
  script.addEventListener("error", () => { library = undefined; script.remove(); reject(new Error("page/plotly.js did not load")); });
  document.head.append(script);
}));

/** Colours of the scheme in use, from app.css: `colour("right")`. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** A chart's axis, with the look that all share. */
export const axis = (title, more = {}) => ({
  title: { text: title, standoff: 8 }, gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false,
  automargin: true, ...more,
});

/** A time axis. On a narrow screen it has few ticks, so that they need not be turned. */
export const timeAxis = more => axis("local time", { type: "date", nticks: innerWidth < 600 ? 4 : 8, tickangle: 0, ...more });

const layout = more => ({
  font: { family: "system-ui, sans-serif", size: 12, color: colour("text") },
  paper_bgcolor: "transparent", plot_bgcolor: "transparent",
  margin: { l: 52, r: 12, t: 8, b: 40 },
  hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("text") } },
  legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", bgcolor: "transparent" },
  dragmode: coarse.matches ? false : "zoom", // a finger scrolls the page
  uirevision: "keep", ...more,
});

const charts = new Set();
const waiting = new Set();
let scheduled = false;

function schedule(chart) {
  waiting.add(chart);
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(drawNext);
}

async function drawNext() {
  const [chart] = waiting;
  waiting.delete(chart);
  try { await chart?.draw(); } finally {
    scheduled = false;
    if (waiting.size) schedule([...waiting][0]);
  }
}

const onScreen = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    target.chart.visible = isIntersecting;
    target.chart.wake();
  }
}, { rootMargin: "200px" });
document.addEventListener("visibilitychange", () => charts.forEach(chart => chart.wake()));
dark.addEventListener("change", () => charts.forEach(chart => { chart.stale = true; chart.wake(); }));

/** One chart in `node`, drawn from what `update` was last given. */
export class Chart {
  visible = false;
  stale = false;
  #node;
  #plot;
  #table;
  #make = null;
  #held = 0;
  #view = null;

  constructor(node) {
    this.#node = node;
    this.#plot = make("div", { className: "plot", role: "img", "aria-label": "No data yet" });
    this.#table = make("details", { className: "as-table" }, make("summary", { textContent: "As a table" }));
    this.#plot.addEventListener("pointermove", event => event.pointerType === "mouse" && this.#hold());
    this.#plot.addEventListener("pointerleave", () => this.#release());
    this.#table.addEventListener("toggle", () => this.#fillTable());
    node.append(this.#plot, this.#table);
    node.chart = this;
    charts.add(this);
    onScreen.observe(node);
  }

  /** `view`: {label: () => text, length, columns: [[name, at => text]], newestFirst} for readers of words.
   *  `figure`: makes plotly's {data, layout}. */
  update(view, figure) {
    this.#view = view;
    this.#make = figure;
    this.stale = true;
    this.wake();
  }

  wake() {
    if (this.stale && this.visible && !document.hidden && !this.#held) schedule(this);
  }

  /** A chart that is pointed at stands still for a while: to draw it again would remove what it says about the point. */
  #hold() {
    clearTimeout(this.#held);
    this.#held = setTimeout(() => this.#release(), HOLD_MS);
  }

  #release() {
    clearTimeout(this.#held);
    this.#held = 0;
    this.wake();
  }

  remove() {
    charts.delete(this);
    waiting.delete(this);
    onScreen.unobserve(this.#node);
    globalThis.Plotly?.purge(this.#plot);
  }

  async draw() {
    if (!this.#make) return;
    this.stale = false;
    this.#plot.setAttribute("aria-label", this.#view.label());
    this.#fillTable();
    const { data, layout: more } = this.#make();
    try {
      const plotly = await loadPlotly();
      if (!performance.getEntriesByName("first-chart").length) requestAnimationFrame(() => performance.mark("first-chart")); // tools/bench page
      await plotly.react(this.#plot, data, layout(more), { displayModeBar: false, responsive: true, doubleClick: "reset" });
    } catch (error) {
      if (!globalThis.Plotly) setText(this.#plot, `${error.message}. The figures are in the table.`);
      else throw error;
    }
  }

  #fillTable() {
    if (!this.#table.open || !this.#view) return;
    const { label, length, columns, newestFirst } = this.#view;
    const at = Array.from({ length: newestFirst ? Math.min(ROWS, length) : length }, (_, n) => (newestFirst ? length - 1 - n : n));
    const rows = at.map(index => columns.map(([, text]) => text(index)));
    const box = make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": label() },
      table(label(), columns.map(([name]) => name), rows));
    this.#table.replaceChildren(this.#table.firstElementChild, box);
  }
}
