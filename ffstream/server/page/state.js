// The state of the daemon in words, from its status.

import { duration } from "./format.js";

const WORDS = {
  starting: ["Starting", "It recovers what it has learned, and will serve soon."],
  ready: ["Ready", "It accepts samples, learns and predicts."],
  paused: ["Paused", "Samples are stored, and learned after ffstream resume. Predictions are answered."],
  draining: ["Draining", "It accepts no more samples, and learns those that it has stored."],
  stopping: ["Stopping", "It learns what it can, writes a checkpoint and ends."],
  standby: ["Standby", "It waits to take over the state folder from the daemon that serves."],
  failed: ["Failed", "A thread has died. See the log."],
};

/** {name, word, text}: the name chooses the colour. What matters most comes first. */
export function describe(status) {
  const { state, refusing, interrupted } = status;
  if (refusing && (state === "ready" || state === "paused")) {
    const hint = status.refusing_hint ? ` What to do: ${status.refusing_hint}.` : "";
    const paused = state === "paused" ? " Learning is paused, too." : interrupted ? " Learning is interrupted, too." : "";
    return {
      name: "refusing", word: "Refusing samples",
      text: `Reason: ${refusing.replaceAll("_", " ")}.${hint} Predictions are answered.${paused}`.replace("..", "."),
    };
  }
  if (interrupted && state === "ready") return { name: "interrupted", word: "Learning is interrupted", ...describeInterruption(interrupted) };
  const [word, text] = WORDS[state] ?? [state, ""];
  if (interrupted && state === "paused") return { name: state, word, text: `${text} Learning is interrupted, too: ${interrupted.reason}.` };
  return { name: state, word, text };
}

/** The stages of a cluster are gone: the note changes all the time, so it is not read out. */
function describeInterruption({ reason, hint, seconds, tries }) {
  const todo = hint ? ` Hint: ${hint}.` : "";
  return {
    text: `Samples are stored, and learned when stages are placed again. Predictions are answered. Reason: ${reason}.${todo}`.replace("..", "."),
    note: `For ${duration(Math.round(seconds))}, ${tries} ${tries === 1 ? "try" : "tries"} to place the stages.`,
  };
}

/** The state when no figures come. `since`: seconds since the last ones, or null if there were none. The note changes
 *  all the time, so it is not read out. */
export function describeLost(since, why) {
  return {
    name: "lost", word: "Lost",
    text: `No figures come from the daemon: ${why}. This page connects again by itself.`,
    note: since === null ? "" : `The figures below are ${duration(Math.round(since))} old.`,
  };
}
