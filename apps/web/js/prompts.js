// The prompt box, its history (kept in this browser) and chips to use a prompt again.

import { inBrowser } from "./store.js";

const STORE = "fewstep.prompts";
const KEPT = 50;
const RECENT_CHIPS = 4;

export class PromptBox {
  /** @param {(id: string) => any} find @param {(text: string) => void} onSend */
  constructor(find, onSend) {
    this.input = find("prompt-text");
    this.button = find("prompt-send");
    this.chips = find("chips");
    this.onSend = onSend;
    /** @type {string[]} */
    this.examples = [];
    this.history = load();
    this.position = -1;
    this.draft = "";
    find("prompt-form").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this.send(this.input.value);
    });
    this.input.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.browse(event));
  }

  /** @param {boolean} on */
  enable(on) {
    this.input.disabled = this.button.disabled = !on;
    this.draw();
  }

  /** @param {string[]} examples */
  setExamples(examples) {
    this.examples = examples;
    this.draw();
  }

  /** @param {string} raw */
  send(raw) {
    const text = raw.trim();
    if (!text) {
      this.input.focus();
      return;
    }
    this.history = [text, ...this.history.filter((old) => old !== text)].slice(0, KEPT);
    inBrowser.set(STORE, this.history);
    this.position = -1;
    this.input.value = "";
    this.input.blur();
    this.draw();
    this.onSend(text);
  }

  /** Up and down walk through the history. @param {KeyboardEvent} event */
  browse(event) {
    if (event.key === "Escape") this.input.blur();
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return;
    event.preventDefault();
    if (this.position === -1) this.draft = this.input.value;
    const step = event.key === "ArrowUp" ? 1 : -1;
    this.position = Math.max(-1, Math.min(this.history.length - 1, this.position + step));
    this.input.value = this.position === -1 ? this.draft : this.history[this.position];
  }

  draw() {
    const recent = this.history.filter((text) => !this.examples.includes(text)).slice(0, RECENT_CHIPS);
    this.chips.replaceChildren(
      ...recent.map((text) => this.chip(text, "recent")),
      ...this.examples.map((text) => this.chip(text, "")),
    );
  }

  /** @param {string} text @param {string} kind */
  chip(text, kind) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = kind;
    button.textContent = text;
    button.title = text;
    button.disabled = this.button.disabled;
    button.addEventListener("click", () => this.send(text));
    return button;
  }
}

/** @returns {string[]} */
function load() {
  const stored = inBrowser.get(STORE);
  return Array.isArray(stored) ? stored.filter((text) => typeof text === "string").slice(0, KEPT) : [];
}
