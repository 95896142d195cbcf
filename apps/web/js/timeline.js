// The last minute: one cell per chunk, coloured by how fast it was made, and a marker where each prompt began.

import { fitted } from "./sparkline.js";
import { colour } from "./theme.js";

const SPAN_S = 60;
const CELLS_KEPT = 400;

export class Timeline {
  /** @param {HTMLElement} root @param {(text: string) => void} onReuse */
  constructor(root, onReuse) {
    this.canvas = /** @type {HTMLCanvasElement} */ (root.querySelector("canvas"));
    this.layer = /** @type {HTMLElement} */ (root.querySelector("div"));
    this.onReuse = onReuse;
    /** @type {Map<number, {marker: any, button: HTMLButtonElement}>} */
    this.markers = new Map();
    /** @type {any[]} */
    this.announced = [];
    /** @type {Map<number, string>} */
    this.cells = new Map();
    this.speeds = new Map();
    this.nowS = 0;
    this.pendingLabel = document.createElement("span");
    this.pendingLabel.className = "pending";
    this.pendingLabel.hidden = true;
    this.layer.append(this.pendingLabel);
    new ResizeObserver(() => this.draw()).observe(root);
  }

  /** The server has begun anew: what was shown of the old stream has no place in this one. */
  clear() {
    for (const { button } of this.markers.values()) button.remove();
    for (const map of [this.markers, this.cells, this.speeds]) map.clear();
    this.announced = [];
    this.setPending(null);
  }

  /** A prompt that was accepted but is not yet in the picture. @param {string | null} text */
  setPending(text) {
    this.pendingLabel.hidden = text === null;
    this.pendingLabel.textContent = text === null ? "" : `next: ${text}`;
  }

  /** Kept back until its first frame is drawn. @param {any} marker */
  announce(marker) {
    this.announced.push(marker);
  }

  /** @param {any} message */
  addChunk(message) {
    const fast = message.seconds.total * this.fps <= message.frames;
    this.speeds.set(message.index, fast ? "fine" : "late");
    if (this.speeds.size > CELLS_KEPT) this.speeds.delete(this.speeds.keys().next().value);
  }

  /** @param {any} frame @returns {any[]} the markers that came into the picture with this frame */
  advance(frame) {
    this.fps = frame.fps;
    this.nowS = frame.ptsUs / 1e6;
    if (!this.cells.has(frame.chunk)) {
      this.cells.set(frame.chunk, { startS: this.nowS, reset: Boolean(frame.flags & 8) });
      if (this.cells.size > CELLS_KEPT) this.cells.delete(this.cells.keys().next().value);
    }
    const shown = this.announced.filter((marker) => marker.first_seq <= frame.seq);
    this.announced = this.announced.filter((marker) => marker.first_seq > frame.seq);
    shown.forEach((marker) => this.show(marker));
    this.draw();
    return shown;
  }

  /** @param {any} marker */
  show(marker) {
    if (this.markers.has(marker.rev)) return;
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.source = marker.source;
    button.title = `${marker.text}\nclick to use this prompt again`;
    button.setAttribute("aria-label", `prompt began here: ${marker.text}. Use it again`);
    button.addEventListener("click", () => this.onReuse(marker.text));
    this.layer.append(button);
    this.markers.set(marker.rev, { marker, button });
  }

  draw() {
    for (const [rev, { marker, button }] of this.markers) {
      const age = this.nowS - marker.pts_us / 1e6;
      if (age > SPAN_S) {
        button.remove();
        this.markers.delete(rev);
      } else {
        button.style.left = `${100 * (1 - age / SPAN_S)}%`;
      }
    }
    const context = fitted(this.canvas);
    const { clientWidth: width, clientHeight: height } = this.canvas;
    context.fillStyle = colour("panel");
    context.fillRect(0, 0, width, height);
    const cells = [...this.cells];
    cells.forEach(([chunk, cell], i) => {
      const endS = i + 1 < cells.length ? cells[i + 1][1].startS : this.nowS;
      const left = width * (1 - (this.nowS - cell.startS) / SPAN_S);
      const right = width * (1 - (this.nowS - endS) / SPAN_S);
      if (right < 0) return;
      context.fillStyle = colour(`chunk-${cell.reset ? "reset" : this.speeds.get(chunk) ?? "fine"}`);
      context.fillRect(left, 0, Math.max(0, right - left - 1), height);
    });
  }
}
