// The cache as it is: sink block, sliding window, and what just left the window.

const FULL_DRIFT = 0.25;

export class MemoryView {
  /** @param {(id: string) => HTMLElement} find */
  constructor(find) {
    this.root = find("memory");
    this.bar = find("drift-bar");
    this.value = find("drift-value");
    this.decay = find("decay");
    this.newest = -1;
  }

  /** @param {any} window @param {string} mode */
  show(window, mode) {
    const { sink, latent, evicted } = window;
    const parts = [];
    if (sink.frames.length) {
      const label = mode === "ema" ? "sink, fused" : `sink, #0–${sink.frames.length - 1}`;
      parts.push(block("sink", mode, sink.frames.map(() => ""), label));
    }
    const kinds = [...evicted.map(() => "gone"), ...latent.map((/** @type {number} */ i) => (i > this.newest ? "new" : ""))];
    const range = latent.length ? `window, #${latent[0]}–${latent[latent.length - 1]}` : "window, empty";
    parts.push(block("window", mode, kinds, range));
    this.root.replaceChildren(...parts);
    this.root.setAttribute("aria-label", `${sink.frames.length} sink frames; ${range}`);
    this.newest = latent.length ? latent[latent.length - 1] : -1;
    this.bar.style.width = `${Math.min(100, (100 * sink.drift) / FULL_DRIFT)}%`;
    this.value.textContent = sink.frames.length ? sink.drift.toFixed(3) : "–";
    this.decay.textContent = {
      ema: `evicted frames are fused into the sink, decay ${+sink.decay.toFixed(4)}`,
      first: "the first frames stay; evicted ones are forgotten",
      none: "evicted frames are forgotten",
    }[mode] ?? "";
  }
}

/** @param {string} name @param {string} mode @param {string[]} kinds @param {string} text */
function block(name, mode, kinds, text) {
  const cells = document.createElement("div");
  cells.className = "cells";
  cells.append(...kinds.map((kind) => Object.assign(document.createElement("i"), { className: kind })));
  const label = Object.assign(document.createElement("span"), { className: "label", textContent: text });
  const root = Object.assign(document.createElement("div"), { className: name });
  root.dataset.mode = mode;
  root.append(cells, label);
  return root;
}
