// H.264 pictures to video frames, one at a time, in order; after an error it waits for a key picture.

import { FLAG } from "./protocol.js";

const CODEC = "avc1.42E01F";

export class H264Decoder {
  /** @param {(frame: any, picture: VideoFrame) => void} onPicture @param {(frame: any) => void} onBroken */
  constructor(onPicture, onBroken) {
    this.onPicture = onPicture;
    this.onBroken = onBroken;
    /** @type {Map<number, any>} */
    this.under = new Map();
    /** @type {VideoDecoder | null} */
    this.decoder = null;
  }

  /** @param {any} frame */
  push(frame) {
    const key = Boolean(frame.flags & FLAG.key);
    if (!this.decoder && !key) {
      this.onBroken(frame);
      return;
    }
    this.decoder ??= this.make();
    this.under.set(frame.ptsUs, frame);
    this.decoder.decode(new EncodedVideoChunk({ type: key ? "key" : "delta", timestamp: frame.ptsUs, data: frame.payload }));
  }

  make() {
    const decoder = new VideoDecoder({
      output: (picture) => {
        const frame = this.under.get(picture.timestamp);
        this.under.delete(picture.timestamp);
        if (frame) this.onPicture(frame, picture);
        else picture.close();
      },
      error: () => {
        this.decoder = null;
        const lost = [...this.under.values()];
        this.under.clear();
        lost.forEach((frame) => this.onBroken(frame));
      },
    });
    decoder.configure({ codec: CODEC, optimizeForLatency: true });
    return decoder;
  }
}
