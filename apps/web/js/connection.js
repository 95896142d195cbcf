// One WebSocket that comes back by itself.

import { codecs, enter, here } from "./place.js";
import { SUBPROTOCOL, parseFrame } from "./protocol.js";

const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 8000;
const STEADY_MS = 10000;
const PING_MS = 5000;
const CLOCKS_KEPT = 12;
export const TAKEN = 4409; // two tabs with one stream's key would take it from each other for ever

export class Connection {
  /** @param {{onMessage: (message: any) => void, onFrame: (frame: any) => void, onLost: (seconds: number, code: number) => void}} handlers */
  constructor(handlers) {
    this.handlers = handlers;
    this.clockOffsetUs = 0;
    /** @type {{roundTripUs: number, offsetUs: number}[]} */
    this.clocks = [];
    this.attempt = 0;
    this.pictureElsewhere = false;
    /** @type {WebSocket | null} */
    this.socket = null;
    setInterval(() => this.send({ type: "ping", t: performance.now() }), PING_MS);
    document.addEventListener("visibilitychange", () => this.sendView());
    this.begin();
  }

  async begin() {
    await enter();
    this.codecs = await codecs();
    this.open();
  }

  open() {
    const place = here();
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/v1/sessions/${place.session}/stream`, SUBPROTOCOL);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    let steady = 0;
    socket.onopen = () => {
      const { role, resume } = place;
      this.send({ type: "hello", role, resume, codecs: this.codecs, client: { name: "page", version: "1" } });
      this.send({ type: "ping", t: performance.now() });
      if (document.hidden || this.pictureElsewhere) this.sendView();
      steady = window.setTimeout(() => { this.attempt = 0; }, STEADY_MS);
    };
    socket.onmessage = (event) => {
      if (event.data instanceof ArrayBuffer) this.handlers.onFrame(parseFrame(event.data));
      else this.receive(JSON.parse(event.data));
    };
    socket.onclose = (event) => {
      clearTimeout(steady);
      this.socket = null;
      const wait = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.attempt) * (0.7 + 0.6 * Math.random());
      this.attempt += 1;
      this.handlers.onLost(wait / 1000, event.code);
      if (event.code !== TAKEN) setTimeout(() => this.open(), wait);
    };
  }

  /** @param {any} message */
  receive(message) {
    if (message.type === "pong") {
      this.setClock((performance.now() - message.t) * 1000, message.server_us);
      return;
    }
    this.handlers.onMessage(message);
  }

  /** The quickest of the recent answers tells the other clock best. @param {number} roundTripUs @param {number} serverUs */
  setClock(roundTripUs, serverUs) {
    this.clocks.push({ roundTripUs, offsetUs: serverUs + roundTripUs / 2 - this.wallUs() });
    if (this.clocks.length > CLOCKS_KEPT) this.clocks.shift();
    this.clockOffsetUs = this.clocks.reduce((a, b) => (b.roundTripUs < a.roundTripUs ? b : a)).offsetUs;
  }

  wallUs() {
    return (performance.timeOrigin + performance.now()) * 1000;
  }

  /** @param {number} sentUs */
  ageMs(sentUs) {
    return Math.max(0, (this.wallUs() + this.clockOffsetUs - sentUs) / 1000);
  }

  /** @param {object} message */
  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  /** Whether the picture comes another way and need not be sent here. @param {boolean} on */
  setElsewhere(on) {
    this.pictureElsewhere = on;
    this.sendView();
  }

  sendView() {
    this.send({ type: "view", visible: !document.hidden && !this.pictureElsewhere });
  }
}
