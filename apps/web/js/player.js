// Decode, keep only the newest picture, draw it, and only then acknowledge it.

export class Player {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {(frame: any) => void} onDrawn
   */
  constructor(canvas, onDrawn) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
    this.onDrawn = onDrawn;
    this.waiting = null;
    this.decoding = false;
    this.ready = null;
    this.requested = false;
  }

  /** @param {any} frame */
  push(frame) {
    this.waiting = frame;
    if (!this.decoding) this.decode();
  }

  async decode() {
    this.decoding = true;
    while (this.waiting) {
      const frame = this.waiting;
      this.waiting = null;
      try {
        const bitmap = await createImageBitmap(new Blob([frame.payload], { type: "image/jpeg" }));
        this.ready?.bitmap.close();
        this.ready = { frame, bitmap };
        this.request();
      } catch {
        // A picture that does not decode counts as seen; the next one is on its way.
        this.onDrawn({ ...frame, broken: true });
      }
    }
    this.decoding = false;
  }

  request() {
    if (this.requested) return;
    this.requested = true;
    requestAnimationFrame(() => {
      this.requested = false;
      const { frame, bitmap } = this.ready;
      this.ready = null;
      if (this.canvas.width !== bitmap.width || this.canvas.height !== bitmap.height) {
        this.canvas.width = bitmap.width;
        this.canvas.height = bitmap.height;
      }
      this.context.drawImage(bitmap, 0, 0);
      bitmap.close();
      this.onDrawn(frame);
    });
  }
}
