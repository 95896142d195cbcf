// The fewstep.v1 binary frame: a 40-byte little-endian header, then the picture.

export const SUBPROTOCOL = "fewstep.v1";
export const CODEC = { jpeg: 1, h264: 2 };
export const FLAG = { key: 1, firstOfChunk: 2, firstOfPrompt: 4, reset: 8, recording: 16 };
const MAGIC = 0x31565346; // "FSV1", read as a little-endian number
const HEADER_BYTES = 40;

/**
 * @param {ArrayBuffer} buffer
 * @returns {{codec: number, flags: number, seq: number, chunk: number, revision: number, width: number,
 *   height: number, fps: number, ptsUs: number, sentUs: number, payload: Uint8Array}}
 */
export function parseFrame(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < HEADER_BYTES || view.getUint32(0, true) !== MAGIC) {
    throw new Error(`not a ${SUBPROTOCOL} frame`);
  }
  return {
    codec: view.getUint8(4),
    flags: view.getUint8(5),
    seq: view.getUint32(8, true),
    chunk: view.getUint32(12, true),
    revision: view.getUint16(16, true),
    width: view.getUint16(18, true),
    height: view.getUint16(20, true),
    fps: view.getUint16(22, true) / 100,
    ptsUs: Number(view.getBigUint64(24, true)),
    sentUs: Number(view.getBigUint64(32, true)),
    payload: new Uint8Array(buffer, view.getUint16(6, true)),
  };
}
