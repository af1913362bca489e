// The panel: the count, the classes, the list, the time. Text is never markup: class names come from a weights file.

import { scoreText } from "./boxes.js";

const STAGE_WORDS = { decode: "Decoding", queue: "Waiting", inference: "Inference" };

export function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** The list of detections: one stop for the Tab key, and arrows within it. */
export class List {
  /**
   * @param {HTMLElement} root a listbox
   * @param {HTMLElement} more says how many rows are below the visible ones
   * @param {{onHover: Function, onFocus: Function}} reactions both get a detection, or null when it is left
   */
  constructor(root, more, { onHover, onFocus }) {
    Object.assign(this, { root, more, onHover, onFocus });
    this.rows = new Map();
    root.addEventListener("scroll", () => this.countBelow());
    new ResizeObserver(() => this.countBelow()).observe(root);
    root.addEventListener("keydown", (event) => this.onKey(event));
  }

  fill(detections) {
    this.rows.clear();
    for (const one of detections) this.rows.set(one, this.row(one));
    this.root.replaceChildren(...this.rows.values());
  }

  row(one) {
    const row = element("li", "row");
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", "false");
    row.tabIndex = -1;
    const swatch = element("span", "swatch");
    const bar = element("span", "bar-of-score");
    row.style.setProperty("--color", one.color);
    row.style.setProperty("--score", one.score);
    row.append(swatch, element("span", "name", one.name), bar, element("span", "number", scoreText(one.score)));
    row.addEventListener("pointerenter", () => this.onHover(one));
    row.addEventListener("pointerleave", () => this.onHover(null));
    row.addEventListener("focus", () => this.onFocus(one));
    row.addEventListener("blur", () => this.onFocus(null));
    row.addEventListener("click", () => row.focus());
    return row;
  }

  /** Show only these rows, mark the active one, and scroll to it. */
  update(visible, active) {
    this.visible = visible;
    const shown = new Set(visible);
    for (const [one, row] of this.rows) {
      row.hidden = !shown.has(one);
      row.setAttribute("aria-selected", String(one === active));
      row.tabIndex = -1;
    }
    const entry = active ?? visible[0];
    if (entry) this.rows.get(entry).tabIndex = 0;
    if (active) this.scrollTo(this.rows.get(active));
    this.countBelow();
  }

  countBelow() {
    const { scrollHeight, scrollTop, clientHeight, firstElementChild: first } = this.root;
    const height = [...this.rows.values()].find((row) => !row.hidden)?.offsetHeight;
    const below = first && height ? Math.round((scrollHeight - scrollTop - clientHeight) / height) : 0;
    this.more.textContent = below > 0 ? `${below} more below` : "End of the list";
    this.more.hidden = scrollHeight <= clientHeight;
  }

  focus(one) {
    this.rows.get(one).focus({ preventScroll: true });
  }

  blur() {
    if (this.root.contains(document.activeElement)) document.activeElement.blur();
  }

  scrollTo(row) {
    // Not scrollIntoView, which would move the page as well.
    const top = row.offsetTop; // from the top of the list, which is positioned
    const { scrollTop, clientHeight } = this.root;
    if (top < scrollTop) this.root.scrollTop = top;
    else if (top + row.offsetHeight > scrollTop + clientHeight) this.root.scrollTop = top + row.offsetHeight - clientHeight;
  }

  onKey(event) {
    if (event.key === "Escape") return this.blur();
    const last = this.visible.length - 1;
    const at = this.visible.findIndex((one) => this.rows.get(one) === document.activeElement);
    const next = { ArrowDown: Math.min(at + 1, last), ArrowUp: Math.max(at - 1, 0), Home: 0, End: last }[event.key];
    if (next === undefined || at < 0) return undefined;
    event.preventDefault();
    return this.focus(this.visible[next]);
  }
}

/** One switch per class that was found. `onToggle` gets the label. */
export function fillClasses(root, detections, onToggle) {
  const classes = new Map();
  for (const one of detections) if (!classes.has(one.label)) classes.set(one.label, one);
  const chips = [...classes.values()].map((one) => {
    const chip = element("button", "chip");
    chip.type = "button";
    chip.dataset.label = one.label;
    chip.style.setProperty("--color", one.color);
    chip.append(element("span", "swatch"), element("span", "name", one.name), element("span", "number"));
    chip.addEventListener("click", () => onToggle(one.label));
    return chip;
  });
  root.replaceChildren(...chips);
}

/** How many of each class pass the threshold, and whether the class is shown. */
export function updateClasses(root, passing, hidden) {
  const counts = new Map();
  for (const one of passing) counts.set(one.label, (counts.get(one.label) ?? 0) + 1);
  for (const chip of root.children) {
    const label = Number(chip.dataset.label);
    chip.setAttribute("aria-pressed", String(!hidden.has(label)));
    chip.querySelector(".number").textContent = counts.get(label) ?? 0;
  }
}

/** How many there are, in a headline and a remark. */
export function summary({ all, passing, shown, visible, kept, image, most }) {
  const size = `${image.width.toLocaleString("en")} × ${image.height.toLocaleString("en")} px`;
  const headline = visible.length === 1 ? "1 object" : `${visible.length || "No"} objects`;
  const remarks = [size];
  const weaker = all.length - passing.length;
  if (all.length === 0) remarks.push("nothing was found at any score");
  else if (weaker > 0) remarks.push(`${weaker} below ${kept.ofClass.size > 0 ? "the thresholds" : kept.least.toFixed(2)}`);
  if (passing.length > shown.length) remarks.push(`${passing.length - shown.length} in hidden classes`);
  if (shown.length > visible.length) remarks.push(`${shown.length - visible.length} overlap a better one`);
  if (all.length === most) remarks.push(`an answer holds the best ${most.toLocaleString("en")}`);
  return { headline, note: remarks.join(" · ") };
}

/** Where the time went: a bar and its legend. What no stage accounts for is the way there and back. */
export function fillTimings({ total, track, legend }, { stages, batch, tiles, totalMs }) {
  const known = stages.reduce((sum, stage) => sum + stage.ms, 0);
  const all = [...stages, { name: "transfer", ms: Math.max(0, totalMs - known) }];
  total.textContent = milliseconds(totalMs);
  track.replaceChildren(
    ...all.map((stage, index) => {
      const part = element("span", `part part-${index % 5}`);
      part.style.flexGrow = stage.ms;
      return part;
    }),
  );
  const pairs = all.map((stage, index) => {
    const group = element("div");
    const term = element("dt");
    term.append(element("span", `key part-${index % 5}`), word(stage.name));
    group.append(term, element("dd", "number", milliseconds(stage.ms)));
    return group;
  });
  for (const [words, count] of [["Pictures in the batch", batch], ["Tiles, and the whole", tiles]]) {
    if (!count) continue;
    const group = element("div");
    group.append(element("dt", "", words), element("dd", "number", count));
    pairs.push(group);
  }
  legend.replaceChildren(...pairs);
}

function word(stage) {
  if (stage === "transfer") return "Transfer and the rest";
  return STAGE_WORDS[stage] ?? stage.charAt(0).toUpperCase() + stage.slice(1);
}

function milliseconds(value) {
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return `${value >= 10 ? Math.round(value) : value.toFixed(1)} ms`;
}
