// Small helpers for the document. Data reaches the page as text and properties only, never as markup.

export const byId = id => document.getElementById(id);

/** A new element. `properties` are set as properties; `data-…`, `aria-…`, `role`, `scope` and `for` as attributes. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (/^(data-|aria-)|^(role|scope|for|headers|list|colspan)$/.test(name)) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

/** Sets the text of an element, if it differs: an unchanged live region is not announced again. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Fills a <select> with options [value, text], keeps the choice if it is still there. */
export function setOptions(select, options) {
  const key = JSON.stringify(options);
  if (select.dataset.options === key) return;
  const chosen = select.value;
  select.replaceChildren(...options.map(([value, text]) => make("option", { value: String(value), textContent: text })));
  if (options.some(([value]) => String(value) === chosen)) select.value = chosen;
  select.dataset.options = key;
}

/** Radio buttons in a <fieldset>. Calls `choose(value)` on each change. */
export function segments(fieldset, name, options, chosen, choose) {
  for (const [value, text] of options) {
    const input = make("input", { type: "radio", name, value, id: `${name}-${value}`, checked: value === chosen });
    input.addEventListener("change", () => choose(value));
    fieldset.append(input, make("label", { for: input.id, textContent: text }));
  }
}

/** A table with a caption for screen readers. `rows` hold text or elements; the first of each is its header. */
export function table(caption, head, rows) {
  const cell = (tag, scope) => value => make(tag, { scope: scope ?? null }, value);
  return make("table", {},
    make("caption", { className: "hidden", textContent: caption }),
    make("thead", {}, make("tr", {}, ...head.map(cell("th", "col")))),
    make("tbody", {}, ...rows.map(([first, ...rest]) => make("tr", {}, cell("th", "row")(first), ...rest.map(cell("td"))))));
}

/** A bar as wide as `share` (0 to 1) of its box. It only repeats a figure that stands beside it. */
export function bar(share, className = "") {
  const node = make("span", { className: `meter ${className}`, "aria-hidden": "true" }, make("span"));
  node.firstChild.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return node;
}

const loops = new Set();

/** Calls `run` each `period` milliseconds while `node` is on the screen, the tab is shown and the daemon answers, and at
 *  once when that begins. `run` may return a promise; two never overlap. Returns a function that runs it soon.
 *  `margin`: how far beyond its edges the screen counts, in pixels. */
export function whileVisible(node, period, run, margin = 100) {
  let visible = false, busy = false, again = false, timer = 0;
  const tick = async () => {
    clearTimeout(timer);
    again = busy;
    if (busy || !visible || document.hidden || document.body.matches(".connecting, .lost, .asking")) return;
    busy = true;
    try {
      await run();
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // no connection: the live feed says so
    } finally {
      busy = false;
      timer = setTimeout(tick, again ? 0 : period);
    }
  };
  new IntersectionObserver(([entry]) => {
    visible = entry.isIntersecting;
    if (visible) tick();
  }, { rootMargin: `${margin}px` }).observe(node);
  document.addEventListener("visibilitychange", tick);
  loops.add(tick);
  return tick;
}

/** Whether the daemon answers. When it does again, everything on the screen is asked for at once. */
export function setLink(state) {
  const was = document.body.className;
  document.body.className = state;
  if (state === "" && was !== "") loops.forEach(tick => tick());
}
