// Decode, keep only the newest picture, draw it, and only then acknowledge it.

import { H264Decoder } from "./decoder.js";
import { CODEC } from "./protocol.js";

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
    this.h264 = new H264Decoder((frame, picture) => this.show(frame, picture), (frame) => this.skip(frame));
  }

  /** @param {any} frame */
  push(frame) {
    if (frame.codec === CODEC.h264) {
      this.h264.push(frame);
      return;
    }
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
        this.show(frame, bitmap);
      } catch {
        this.skip(frame);
      }
    }
    this.decoding = false;
  }

  /** @param {any} frame @param {ImageBitmap | VideoFrame} bitmap */
  show(frame, bitmap) {
    this.ready?.bitmap.close();
    this.ready = { frame, bitmap };
    this.request();
  }

  /** A picture that does not decode counts as seen; the next one is on its way. @param {any} frame */
  skip(frame) {
    this.onDrawn({ ...frame, broken: true });
  }

  request() {
    if (this.requested) return;
    this.requested = true;
    requestAnimationFrame(() => {
      this.requested = false;
      const { frame, bitmap } = this.ready;
      this.ready = null;
      if (this.canvas.width !== frame.width || this.canvas.height !== frame.height) {
        this.canvas.width = frame.width;
        this.canvas.height = frame.height;
      }
      this.context.drawImage(bitmap, 0, 0);
      bitmap.close();
      this.onDrawn(frame);
    });
  }
}
