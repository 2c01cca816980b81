// "Is it well?": the state in words, and tiles.

import { byId, make, setText } from "./dom.js";
import { age, bytes, count, duration, moment, percent, rate } from "./format.js";

const PHASES = { interleaved: "positive and negative rows together", wake: "positive rows only", sleep: "negative rows only" };

// Each tile: its name, its value and a note, from the status.
const TILES = [
  ["Accepted", s => count(s.accepted), s => `samples, ${rate(s.rates?.accepted_per_s)}`],
  ["Learned", s => count(s.learned), learned],
  ["Waiting", s => count(s.backlog), lag],
  ["Predictions", s => rate(s.rates?.predictions_per_s), () => "over about 5 s"],
  ["Snapshot", s => age(s.snapshot?.age_s), s => `old, knows ${count(s.snapshot?.seq)} samples`],
  ["Checkpoint", s => age(s.checkpoint?.age_s), s => (s.checkpoint ? `old, has ${count(s.checkpoint.seq)} samples` : "none yet")],
  ["Disk", s => bytes(s.resources?.disk_free_bytes), () => "free"],
  ["Memory", s => bytes(s.resources?.memory_bytes), memory],
  ["Phase", s => s.phase ?? "–", s => PHASES[s.phase] ?? ""],
  ["Up for", s => duration(s.uptime_s), s => (s.time ? `since ${moment(s.time - s.uptime_s)}` : "")],
];

function learned({ rates, skipped }) {
  return `samples, ${rate(rates?.learned_per_s)}${skipped ? `; ${count(skipped)} skipped` : ""}`;
}

function lag(status) {
  if (!status.backlog) return "nothing waits";
  return status.lag_s === null || status.lag_s === undefined ? "samples" : `samples, ${duration(status.lag_s)} behind`;
}

function memory({ resources }) {
  const { memory_bytes: used, memory_max_bytes: max } = resources ?? {};
  return max ? `${percent(used / max, 0)} of ${bytes(max)}` : "used";
}

const nodes = TILES.map(([name]) => {
  const value = make("dd", { className: "value", textContent: "–" });
  const note = make("dd", { className: "note" });
  byId("tiles").append(make("dl", { className: "card tile" }, make("dt", { textContent: name }), value, note));
  return { value, note };
});

export function showStatus(status) {
  TILES.forEach(([, value, note], at) => {
    setText(nodes[at].value, value(status));
    setText(nodes[at].note, note(status));
  });
  const warnings = Object.values(status.warnings ?? {});
  const list = byId("warnings");
  if (list.dataset.shown !== warnings.join("\n")) {
    list.dataset.shown = warnings.join("\n");
    list.replaceChildren(...warnings.map(textContent => make("li", { textContent })));
  }
}

export function showState({ name, word, text, note = "" }) {
  for (const id of ["pill", "banner"]) byId(id).dataset.state = name;
  setText(byId("pill-text"), word.toLowerCase());
  setText(byId("state-word"), word);
  setText(byId("state-text"), text);
  setText(byId("state-note"), note);
}
