// What the charts draw: the daemon's own record of figures (/api/history), and between two readings of it the figures
// of the live feed, so that curves move each second without asking for the whole record again.

import { getJson } from "./api.js";

export const SPANS = [["10m", "10 min"], ["3h", "3 h"], ["1d", "1 day"], ["30d", "30 days"], ["all", "whole stream"]];
const REFRESH_MS = { "10m": 15000, "3h": 15000, "1d": 60000, "30d": 120000, all: 60000 };

const MARKED_MS = 1500;
const FAILED_MS = 2000;

export class History {
  span = "10m";
  data = null;
  #listeners = [];
  #asked = -Infinity;
  #asking = false;
  #seen = null;

  onChange(listener) {
    this.#listeners.push(listener);
  }

  choose(span) {
    this.span = span;
    this.reload();
  }

  /** Reads the record again at the next status. */
  reload() {
    this.#asked = -Infinity;
    if (this.data) this.refresh();
  }

  /** Takes the figures of a status, and reads the record when that was long ago. */
  async add(status) {
    if (this.data && this.data.interval_s <= 1) append(this.data, status);
    this.#expectMark(status);
    this.#tell();
    if (!document.hidden) await this.refresh();
  }

  /** When something has happened that gets a mark, the record is read soon: it has noticed that within a second. */
  #expectMark({ checkpoint, paused, drift_seq, layers, interrupted, stages }) {
    const places = stages?.map(stage => stage.pid); // an interruption may be too short to be in a status
    const seen = JSON.stringify([checkpoint?.seq, paused, drift_seq, layers?.map(layer => layer.restarts), interrupted?.reason, places]);
    if (this.#seen !== null && this.#seen !== seen) this.#asked = performance.now() - REFRESH_MS[this.span] + MARKED_MS;
    this.#seen = seen;
  }

  async refresh() {
    const now = performance.now();
    if (this.#asking || now - this.#asked < REFRESH_MS[this.span]) return;
    this.#asking = true;
    this.#asked = now;
    const span = this.span;
    try {
      const data = await getJson(`api/history?span=${span}`);
      if (span === this.span) this.data = data;
      this.#tell();
    } catch {
      this.#asked = now - REFRESH_MS[span] + FAILED_MS; // the live feed says what is wrong; try again soon
    } finally {
      this.#asking = false;
    }
    if (span !== this.span) await this.refresh();
  }

  #tell() {
    for (const listener of this.#listeners) listener();
  }
}

const SECONDS = 600; // in the record of ten minutes

/** Adds the figures of a status as one more second. What only the record knows stays unknown until it is read again. */
function append(data, status) {
  const time = Math.floor(status.time);
  if (time <= data.columns.time.at(-1)) return;
  const { columns, before } = data; // the status that was added before; none after the record was read
  const rate = (name, recent) => (before ? (status[name] - before[name]) / (status.time - before.time) : status.rates?.[recent]);
  const learns = status.learned > columns.learned.at(-1); // otherwise the record has no figures of layers
  data.before = status;
  push(data, columns, {
    time, window_error: status.window?.error, accepted: status.accepted, learned: status.learned, waiting: status.backlog,
    accepted_rate: rate("accepted", "accepted_per_s"), rate: rate("learned", "learned_per_s"), prediction_rate: status.rates?.predictions_per_s,
    sleep: learns ? Number(status.phase === "sleep") : null,
  });
  data.layers.forEach((layer, index) => push(data, layer, (learns && status.layers?.[index]) || {}));
}

function push({ span }, columns, point) {
  for (const [name, values] of Object.entries(columns)) {
    values.push(Number.isFinite(point[name]) ? point[name] : null);
    if (span === "10m" && values.length > SECONDS) values.shift();
  }
}
