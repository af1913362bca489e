// Light, dark, or as the system. Not a module: it runs before the first paint, so that nothing flashes.
"use strict";

(() => {
  const KEY = "frcnn-theme";
  const WORDS = { system: "as the system", light: "light", dark: "dark" };
  const CHOICES = Object.keys(WORDS);

  function stored() {
    try {
      const choice = localStorage.getItem(KEY);
      return CHOICES.includes(choice) ? choice : "system";
    } catch {
      return "system"; // storage is forbidden
    }
  }

  function apply(choice) {
    document.documentElement.dataset.theme = choice;
  }

  apply(stored());
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    if (!button) return; // the page of an unknown path has none
    const tell = () => {
      const text = `Colours: ${WORDS[document.documentElement.dataset.theme]}`;
      button.setAttribute("aria-label", text);
      button.title = text;
    };
    tell();
    button.addEventListener("click", () => {
      const next = CHOICES[(CHOICES.indexOf(document.documentElement.dataset.theme) + 1) % CHOICES.length];
      apply(next);
      tell();
      try {
        localStorage.setItem(KEY, next);
      } catch {
        // It then holds until the page is left.
      }
    });
  });
})();
