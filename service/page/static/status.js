// The state of the service from /healthz: every second while it is not ready, every ten seconds while it is.

import { apiKey, health, sentence } from "./service.js";
import { element } from "./results.js";

const WORDS = {
  ok: "Ready",
  loading: "Loading the model",
  draining: "Shutting down",
  failing: "Failing",
  unreachable: "Not reachable",
};
const EVERYDAY = "the model is loaded and its device answers";
const SAMPLE_SUITS = "bundled"; // the sample is a drawing of blood cells, of which other weights know nothing
const SELDOM_MS = 10_000;
const OFTEN_MS = 1_000;

export class Status {
  /**
   * @param {object} elements what shows the state
   * @param {{onHealth: Function, onChange: Function}} reactions to every document of /healthz; to another status
   */
  constructor(elements, { onHealth, onChange }) {
    Object.assign(this, elements, { onHealth, onChange });
    this.last = null;
    this.forgetKey.addEventListener("click", () => {
      apiKey.forget();
      this.forgetKey.hidden = true;
    });
    document.addEventListener("click", (event) => {
      if (!this.root.contains(event.target)) this.root.open = false;
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.root.open = false;
    });
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.check();
    });
    this.check();
  }

  async check() {
    clearTimeout(this.timer);
    const found = await health();
    clearTimeout(this.timer);
    this.show(found);
    if (!document.hidden) this.timer = setTimeout(() => this.check(), found.status === "ok" ? SELDOM_MS : OFTEN_MS);
  }

  show(found) {
    const status = found.status in WORDS ? found.status : "failing";
    this.root.dataset.status = status;
    this.word.textContent = WORDS[status];
    this.weights.textContent = found.model?.weights.split("/").pop() ?? ""; // the card has the whole path
    const detail = sentence(String(found.detail ?? ""));
    this.detail.textContent = detail;
    this.facts.replaceChildren(...facts(found).map(([name, value]) => pair(name, value)));
    this.forgetKey.hidden = apiKey.get() === null;
    this.sample.hidden = found.model?.weights !== SAMPLE_SUITS;
    // What is unusual shows without a click.
    this.caveat.hidden = detail === sentence(EVERYDAY);
    if (this.caveat.textContent !== detail) this.caveat.textContent = detail;
    this.caveat.dataset.status = status;
    this.onHealth(found);
    if (status !== this.last) {
      this.last = status;
      this.onChange(status);
    }
  }
}

function facts(found) {
  const all = [
    ["Model", found.model?.name],
    ["Weights", found.model?.weights],
    ["Weights version", found.model?.version],
    ["Device", found.devices?.join(", ")],
    ["Precision", found.precision],
    ["Backend", found.backend],
    ["Largest batch", found.max_batch_size],
    ["In work", found.queue_capacity ? `${found.images_in_flight} of at most ${found.queue_capacity}` : null],
    ["Version", found.version],
  ];
  return all.filter(([, value]) => value !== null && value !== undefined && value !== "");
}

function pair(name, value) {
  const group = element("div");
  group.append(element("dt", "", name), element("dd", "", String(value)));
  return group;
}
