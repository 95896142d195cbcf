// The picture's frame: status, veil, caption, and messages about what went wrong.

const TOAST_MS = 6000;
const TOASTS = 3;

export class Screen {
  /** @param {(id: string) => any} find */
  constructor(find) {
    this.root = find("screen");
    this.canvas = find("canvas");
    this.pill = find("status");
    this.cover = find("veil");
    this.coverText = find("veil-text");
    this.captionLine = find("caption");
    this.pixels = find("pixels");
    this.seen = false;
  }

  /** @param {any} state */
  status(state) {
    const names = { running: "live", starting: "starting", queued: "waiting", failed: "stopped", stopping: "ending" };
    this.pill.dataset.state = state.state;
    this.pill.textContent = names[state.state] ?? state.state;
    if (state.state === "starting" && state.reason) this.veil(`${state.reason}. A fresh one is being loaded.`);
    else if (state.state === "starting" && !this.seen) this.veil("Loading the model");
    else if (state.state === "queued") { if (!this.coverText.textContent.startsWith("Place")) this.veil("Waiting for a place"); }
    else if (state.state === "failed") this.veil(`The model stopped: ${state.reason}. Reset begins anew.`, { still: true });
    else if (state.pause.includes("user")) this.veil("Paused", { still: true, sheer: true });
    else if (this.seen) this.unveil();
    else this.veil("Waiting for the first frame");
    if (state.prompt && !this.captionLine.textContent) this.caption(state.prompt.text);
  }

  /** @param {any} state */
  drawn(state) {
    this.seen = true;
    if (state.state === "running") this.unveil();
  }

  /** @param {any} place */
  queued({ position, depth, eta_s: eta }) {
    const wait = eta === null ? "" : `, about ${eta < 90 ? `${eta} s` : `${Math.round(eta / 60)} min`}`;
    this.veil(`Place ${position} of ${depth} in the queue${wait}`);
  }

  /** @param {number} seconds */
  lost(seconds) {
    this.seen = false;
    this.pill.dataset.state = "lost";
    this.pill.textContent = "disconnected";
    this.veil(`No connection to the server. Trying again in ${Math.max(1, Math.round(seconds))} s.`);
  }

  /** @param {string} text @param {{still?: boolean, sheer?: boolean}} [look] */
  veil(text, { still = false, sheer = false } = {}) {
    this.coverText.textContent = text;
    this.cover.classList.toggle("still", still);
    this.cover.classList.toggle("sheer", sheer);
    this.cover.classList.remove("off");
  }

  unveil() {
    this.cover.classList.add("off");
  }

  /** @param {string} text */
  caption(text) {
    this.captionLine.textContent = text;
    this.canvas.setAttribute("aria-label", `live video: ${text}`);
  }

  togglePixels() {
    const on = this.root.classList.toggle("pixelated");
    this.pixels.setAttribute("aria-pressed", String(on));
  }

  toggleFullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (document.fullscreenEnabled) this.root.requestFullscreen();
  }
}

/** @param {string} text */
export function toast(text) {
  const root = /** @type {HTMLElement} */ (document.getElementById("toasts"));
  const line = Object.assign(document.createElement("p"), { textContent: text });
  (document.fullscreenElement ?? document.body).append(root); // or a full screen would hide it
  root.append(line);
  while (root.children.length > TOASTS) root.firstChild?.remove();
  setTimeout(() => line.remove(), TOAST_MS);
}
