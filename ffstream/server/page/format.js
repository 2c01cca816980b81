// Figures as text. null is "–": a figure that is not known is never shown as 0.

const NONE = "–";
const known = value => value !== null && value !== undefined && Number.isFinite(value);
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const significant = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const clock = new Intl.DateTimeFormat([], { timeStyle: "medium", hourCycle: "h23" });
const dated = new Intl.DateTimeFormat([], { dateStyle: "short", timeStyle: "medium", hourCycle: "h23" });

export const count = value => (known(value) ? whole.format(value) : NONE);

/** Three significant digits. */
export function figure(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 1000) return whole.format(value);
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return significant.format(value);
}

/** Numbers that are compared: as many decimals as it takes to tell them apart. */
export function compared(values) {
  const spread = Math.max(...values) - Math.min(...values);
  const decimals = spread > 0 ? Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(spread)))) : 2;
  return values.map(value => (known(value) ? value.toFixed(decimals) : NONE));
}

/** A share (0 to 1) in percent. */
export const percent = (value, digits = 2) => (known(value) ? `${(100 * value).toFixed(digits)} %` : NONE);

export const rate = value => (known(value) ? `${value >= 10 || value === 0 ? whole.format(value) : value.toFixed(1)}/s` : NONE);

/** Seconds as text, with a unit that fits. */
export function duration(seconds) {
  if (!known(seconds)) return NONE;
  if (seconds < 0.001) return seconds <= 0 ? "0 s" : `${whole.format(seconds * 1e6)} µs`;
  if (seconds < 0.1) return `${(1e3 * seconds).toFixed(1)} ms`;
  if (seconds < 10 && !Number.isInteger(seconds)) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${whole.format(seconds)} s`;
  if (seconds < 7200) return `${whole.format(seconds / 60)} min`;
  if (seconds < 172800) return `${whole.format(seconds / 3600)} h`;
  return `${whole.format(seconds / 86400)} days`;
}

/** Seconds that something is old: those below 10 with one decimal. */
export const age = seconds => duration(known(seconds) ? Math.round(10 * seconds) / 10 : null);

export function bytes(value) {
  if (!known(value)) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"]; // as `ffstream top` says it
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${value >= 100 || at === 0 ? value.toFixed(0) : value.toFixed(1)} ${units[at]}`;
}

/** The clock time of Unix seconds; with the date if it is not today's. */
export function moment(seconds) {
  const date = new Date(1000 * seconds);
  return (date.toDateString() === new Date().toDateString() ? clock : dated).format(date);
}
