// Which detections are kept: by their scores, by class, and by how much they overlap. The service's own rules (service/api/selection.py).

import { scoreText } from "./boxes.js";
import { element } from "./results.js";

const PLAIN_NAME = /^[\p{L}_][\p{L}\p{N}_ -]*$/u; // other classes go by number: a name may hold a comma
const STEP = 0.01;
const USUAL_OVERLAP = 0.5;

export class Kept {
  /**
   * @param {object} elements the inputs, and what shows their values
   * @param {() => void} onChange
   */
  constructor(elements, onChange) {
    Object.assign(this, elements, { onChange });
    this.hidden = new Set(); // labels of classes that are switched off
    this.ofClass = new Map(); // label to a threshold of its own
    this.rows = new Map();
    this.setOwnOverlap(USUAL_OVERLAP);
    for (const input of [this.threshold, this.overlap, this.agnostic]) input.addEventListener("input", () => this.changed());
    this.same.addEventListener("click", () => {
      this.ofClass.clear();
      this.changed();
    });
  }

  /** The overlap above which the model itself drops the lower of two detections of a class. */
  setOwnOverlap(overlap) {
    if (Number(this.overlap.max) === overlap) return;
    const isOwn = this.overlapIsOwn;
    this.overlap.max = overlap;
    if (isOwn) this.overlap.value = overlap;
    this.changed();
  }

  get overlapIsOwn() {
    return Number(this.overlap.value) + STEP > Number(this.overlap.max);
  }

  /** A threshold for each class that was found. */
  fill(detections) {
    const classes = new Map(detections.map((one) => [one.label, one]));
    this.hidden = new Set([...this.hidden].filter((label) => classes.has(label)));
    this.ofClass = new Map([...this.ofClass].filter(([label]) => classes.has(label)));
    this.rows = new Map([...classes.values()].map((one) => [one.label, this.row(one)]));
    this.list.replaceChildren(...[...this.rows.values()].map((row) => row.root));
    this.showValues();
  }

  row({ label, name, color }) {
    const root = element("label", "class-threshold");
    root.style.setProperty("--color", color);
    const slider = element("input");
    Object.assign(slider, { type: "range", min: this.threshold.min, max: this.threshold.max, step: STEP });
    slider.addEventListener("input", () => {
      this.ofClass.set(label, Number(slider.value));
      this.changed();
    });
    const value = element("output");
    root.append(element("span", "swatch"), element("span", "name", name), value, slider);
    return { root, slider, value, name };
  }

  changed() {
    this.showValues();
    this.onChange();
  }

  showValues() {
    this.thresholdValue.textContent = scoreText(this.least);
    this.overlapValue.textContent = Number(this.overlap.value).toFixed(2);
    this.same.hidden = this.ofClass.size === 0;
    for (const [label, { root, slider, value }] of this.rows) {
      slider.value = this.leastOf(label);
      value.textContent = scoreText(this.leastOf(label));
      root.classList.toggle("own", this.ofClass.has(label));
    }
  }

  /** The least score of classes without a threshold of their own. */
  get least() {
    return Number(this.threshold.value);
  }

  leastOf(label) {
    return this.ofClass.get(label) ?? this.least;
  }

  /** What passes the thresholds, what of that is of a class that is shown, and what of that overlaps nothing better. */
  choose(detections) {
    const passing = detections.filter((one) => one.score >= this.leastOf(one.label));
    const shown = passing.filter((one) => !this.hidden.has(one.label));
    const acrossClasses = this.agnostic.checked;
    if (this.overlapIsOwn && !acrossClasses) return { passing, shown, visible: shown };
    return { passing, shown, visible: suppress(shown, Number(this.overlap.value), acrossClasses) };
  }

  toggle(label) {
    if (!this.hidden.delete(label)) this.hidden.add(label);
    this.onChange();
  }

  hide(labels) {
    this.hidden = new Set(labels);
    this.onChange();
  }

  /** The parameters that ask the service for the same. */
  query() {
    const own = [...this.ofClass].map(([label, least]) => `${this.word(label)}:${least}`);
    const query = [["score_threshold", own.length > 0 ? [this.least, ...own].join(",") : this.least]];
    if (this.hidden.size > 0) {
      const shown = [...this.rows.keys()].filter((label) => !this.hidden.has(label));
      const arePlain = shown.every((label) => PLAIN_NAME.test(this.rows.get(label).name));
      query.push(["labels", shown.map((label) => (arePlain ? this.rows.get(label).name : `#${label}`)).join(",")]); // none: no class
    }
    if (!this.overlapIsOwn) query.push(["iou_threshold", Number(this.overlap.value)]);
    if (this.agnostic.checked) query.push(["class_agnostic", "true"]);
    return query;
  }

  word(label) {
    const { name } = this.rows.get(label);
    return PLAIN_NAME.test(name) ? name : `#${label}`;
  }
}

/** Drop each detection that overlaps a better one too much. They are best first. */
function suppress(detections, most, acrossClasses) {
  const kept = [];
  for (const one of detections) {
    const compared = acrossClasses ? kept : kept.filter((other) => other.label === one.label);
    if (compared.every((other) => overlap(one.box, other.box) <= most)) kept.push(one);
  }
  return kept;
}

/** Intersection over union. */
function overlap([left, top, right, bottom], [otherLeft, otherTop, otherRight, otherBottom]) {
  const width = Math.min(right, otherRight) - Math.max(left, otherLeft);
  const height = Math.min(bottom, otherBottom) - Math.max(top, otherTop);
  if (width <= 0 || height <= 0) return 0;
  const areas = (right - left) * (bottom - top) + (otherRight - otherLeft) * (otherBottom - otherTop);
  return (width * height) / (areas - width * height);
}
