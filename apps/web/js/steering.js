// Steering axes of the model as rows of buttons; arrow keys do the same.

import { fillChoice, markChoice } from "./choice.js";

const GLYPHS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };

export class Steering {
  /** @param {HTMLElement} panel @param {HTMLElement} root @param {(message: object) => void} send */
  constructor(panel, root, send) {
    this.panel = panel;
    this.root = root;
    this.send = send;
    /** @type {Map<string, HTMLElement>} */
    this.rows = new Map();
    /** @type {Set<string>} */
    this.keys = new Set();
  }

  /** @param {any[]} axes */
  build(axes) {
    this.panel.hidden = axes.length === 0;
    this.rows.clear();
    this.keys = new Set(axes.flatMap((axis) => Object.keys(axis.keys ?? {})));
    this.root.replaceChildren(...axes.map((axis) => this.row(axis)));
  }

  /** @param {any} axis */
  row(axis) {
    const glyph = Object.fromEntries(Object.entries(axis.keys ?? {}).map(([key, value]) => [value, GLYPHS[key] ?? key]));
    const label = Object.assign(document.createElement("span"), { textContent: axis.name, id: `axis-${axis.name}` });
    const choice = document.createElement("div");
    choice.className = "choice";
    choice.setAttribute("role", "group");
    choice.setAttribute("aria-labelledby", label.id);
    const options = axis.values.map((/** @type {string} */ value) => ({ value, label: value, key: glyph[value] }));
    fillChoice(choice, options, (value) => this.send({ type: "steer", axis: axis.name, value }));
    this.rows.set(axis.name, choice);
    const row = document.createElement("div");
    row.className = "axis";
    row.append(label, choice);
    return row;
  }

  /** @param {Record<string, string>} state */
  mark(state) {
    for (const [name, choice] of this.rows) markChoice(choice, state[name]);
  }

  /** @param {string} key @returns {boolean} whether the key steers */
  press(key) {
    if (!this.keys.has(key)) return false;
    this.send({ type: "steer", key });
    return true;
  }
}
