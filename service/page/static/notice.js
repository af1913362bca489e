// What stands in the way, in words, with what can be done about it: wait and retry, or give a key.

import { apiKey } from "./service.js";
import { element } from "./results.js";

export class Notice {
  /**
   * @param {HTMLElement} root
   * @param {() => void} onRetry
   */
  constructor(root, onRetry) {
    Object.assign(this, { root, onRetry, timer: null, waits: false });
  }

  clear() {
    clearInterval(this.timer);
    this.waits = false;
    this.root.dataset.kind = "refusal";
    this.root.hidden = true;
    this.root.replaceChildren();
  }

  /** Something that the user can read and no more. */
  say(headline, detail) {
    this.clear();
    this.root.append(element("h2", "", headline), element("p", "", detail));
    this.root.hidden = false;
  }

  /** @param {import("./service.js").Problem} problem */
  show(problem) {
    const { status, headline, detail, retryAfter, requestId } = problem;
    if (status === 401) {
      const refused = apiKey.get() !== null;
      this.say(refused ? "This API key was refused" : headline, "This service answers those who have its key.");
      this.askForKey();
      return;
    }
    this.say(headline, detail);
    if (retryAfter !== null) {
      this.countDown(retryAfter);
      return;
    }
    if (status === 0 || status >= 500) this.offerRetry();
    if (requestId) this.root.append(element("p", "request-id", `Request ${requestId}`));
  }

  retryNow() {
    this.clear();
    this.onRetry();
  }

  offerRetry() {
    this.root.append(this.actions(this.button("Try again", "primary", () => this.retryNow())));
  }

  countDown(seconds) {
    this.waits = true;
    this.root.dataset.kind = "wait";
    const text = element("p", "countdown");
    // A screen reader hears the notice once, not each second.
    text.setAttribute("aria-hidden", "true");
    const until = performance.now() + seconds * 1000;
    const tick = () => {
      const left = Math.ceil((until - performance.now()) / 1000);
      if (left <= 0) return this.retryNow();
      text.textContent = `Trying again in ${left} s`;
      return undefined;
    };
    const now = this.button("Try now", "primary", () => this.retryNow());
    const stop = this.button("Cancel", "", () => this.clear());
    this.root.append(text, this.actions(now, stop));
    tick();
    if (!this.root.hidden) this.timer = setInterval(tick, 250);
  }

  askForKey() {
    apiKey.forget();
    this.root.dataset.kind = "wait";
    const form = element("form", "key");
    const label = element("label", "", "API key");
    label.htmlFor = "api-key";
    const input = element("input");
    Object.assign(input, { id: "api-key", type: "password", required: true, autocomplete: "off", spellcheck: false });
    const send = element("button", "primary", "Use this key");
    form.append(label, input, send);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      apiKey.set(input.value.trim());
      this.retryNow();
    });
    this.root.append(form, element("p", "muted", "It is kept in this tab only, and forgotten when the tab is closed."));
    input.focus();
  }

  actions(...buttons) {
    const row = element("div", "actions");
    row.append(...buttons);
    return row;
  }

  button(text, className, onClick) {
    const made = element("button", className, text);
    made.type = "button";
    made.addEventListener("click", onClick);
    return made;
  }
}
