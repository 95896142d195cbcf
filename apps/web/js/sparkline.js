// A small line of recent values.

import { colour } from "./theme.js";

const KEPT = 120;

/** Fit a canvas to its CSS size on this screen, and return its context in CSS pixels. */
export function fitted(/** @type {HTMLCanvasElement} */ canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
  return context;
}

export class Sparkline {
  /** @param {HTMLCanvasElement} canvas @param {{color: string, floor: number, guide?: number}} look */
  constructor(canvas, look) {
    this.canvas = canvas;
    this.look = look;
    /** @type {number[]} */
    this.values = [];
  }

  /** @param {number} value */
  add(value) {
    this.values.push(value);
    if (this.values.length > KEPT) this.values.shift();
    this.draw();
  }

  draw() {
    const context = fitted(this.canvas);
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const top = Math.max(this.look.floor, ...this.values) * 1.1;
    const x = (/** @type {number} */ i) => width - 3 - ((this.values.length - 1 - i) * (width - 6)) / (KEPT - 1);
    const y = (/** @type {number} */ value) => height - 3 - (value / top) * (height - 6);
    if (this.look.guide) {
      context.strokeStyle = colour("guide");
      context.setLineDash([3, 4]);
      context.beginPath();
      context.moveTo(0, y(this.look.guide));
      context.lineTo(width, y(this.look.guide));
      context.stroke();
      context.setLineDash([]);
    }
    if (!this.values.length) return;
    const line = new Path2D();
    this.values.forEach((value, i) => (i ? line.lineTo(x(i), y(value)) : line.moveTo(x(i), y(value))));
    const area = new Path2D(line);
    area.lineTo(x(this.values.length - 1), height);
    area.lineTo(x(0), height);
    context.fillStyle = colour(this.look.color) + "22";
    context.fill(area);
    context.strokeStyle = colour(this.look.color);
    context.lineWidth = 1.5;
    context.stroke(line);
    context.fillStyle = colour(this.look.color);
    context.beginPath();
    context.arc(x(this.values.length - 1), y(this.values[this.values.length - 1]), 2.5, 0, 7);
    context.fill();
  }
}

/** @param {number[]} values @param {number} share */
export function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}
