// What the viewer really gets: frames drawn per second, and the age of each frame when it is drawn.

import { Sparkline, quantile } from "./sparkline.js";

const WINDOW_MS = 2000;
const SAMPLE_MS = 500;
const LATENCIES_KEPT = 120;

export class SpeedView {
  /** @param {(id: string) => any} find */
  constructor(find) {
    this.find = find;
    this.fpsSpark = new Sparkline(find("fps-spark"), { color: "accent", floor: 4 });
    this.latencySpark = new Sparkline(find("latency-spark"), { color: "warm", floor: 20 });
    /** @type {number[]} */
    this.drawTimes = [];
    /** @type {number[]} */
    this.latencies = [];
    this.sentAt = 0;
    setInterval(() => this.sample(), SAMPLE_MS);
  }

  /** @param {number} fps */
  setRate(fps) {
    this.fpsSpark.look.guide = fps;
    this.fpsSpark.look.floor = fps;
    this.find("speed-note").textContent = `plays at ${fps} fps`;
  }

  promptSent() {
    this.sentAt = performance.now();
  }

  /** @param {number | null} ageMs null where it cannot be known @param {boolean} firstOfPrompt */
  drawn(ageMs, firstOfPrompt) {
    const now = performance.now();
    this.drawTimes.push(now);
    while (this.drawTimes[0] < now - WINDOW_MS) this.drawTimes.shift();
    if (ageMs === null) this.latencies = [];
    else this.latencies.push(ageMs);
    if (this.latencies.length > LATENCIES_KEPT) this.latencies.shift();
    if (firstOfPrompt && this.sentAt) {
      this.find("fact-photon").textContent = `${((now - this.sentAt) / 1000).toFixed(2)} s`;
      this.sentAt = 0;
    }
  }

  sample() {
    if (!this.drawTimes.length) return;
    const now = performance.now();
    const recent = this.drawTimes.filter((time) => time >= now - WINDOW_MS);
    const span = recent.length > 1 ? recent[recent.length - 1] - recent[0] : 0;
    const idle = !recent.length || now - recent[recent.length - 1] > SAMPLE_MS * 2;
    const fps = idle || span === 0 ? 0 : ((recent.length - 1) * 1000) / span;
    this.fpsSpark.add(fps);
    for (const id of ["fps-now", "fps-value"]) this.find(id).textContent = fps.toFixed(1);
    const latency = this.latencies.length ? quantile(this.latencies, 0.5).toFixed(0) : "–";
    for (const id of ["latency-now", "latency-value"]) this.find(id).textContent = latency;
    if (this.latencies.length) this.latencySpark.add(this.latencies[this.latencies.length - 1]);
  }

  /** @param {any} message */
  chunk(message) {
    const seconds = message.seconds.total;
    this.find("fact-generation").textContent = `${(message.frames / seconds).toFixed(0)} fps`;
  }

  /** @param {any} stats */
  stats(stats) {
    this.find("fact-stall").textContent = `${stats.stall_s.toFixed(1)} s`;
    this.find("fact-dropped").textContent = String(stats.dropped);
  }
}
