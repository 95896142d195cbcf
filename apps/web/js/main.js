// Wires the connection to the views.

import { fillChoice, markChoice } from "./choice.js";
import { Connection, TAKEN } from "./connection.js";
import { installKeys } from "./keys.js";
import { MemoryView } from "./memory.js";
import { Player } from "./player.js";
import { PromptBox } from "./prompts.js";
import { RecordView } from "./recordings.js";
import { SpeedView } from "./speed.js";
import { Steering } from "./steering.js";
import { Timeline } from "./timeline.js";
import { Screen, toast } from "./screen.js";
import { beginOwn, here, leaveOwn } from "./place.js";
import { WebRtcPicture, offered } from "./webrtc.js";

/** @param {string} id @returns {any} */
const find = (id) => document.getElementById(id);

const screen = new Screen(find);
const speed = new SpeedView(find);
const memory = new MemoryView(find);
const records = new RecordView(find, toast);
let state = /** @type {any} */ ({ state: "starting", pause: [] });
let modelKnown = false;
/** What is known of the newest picture that was drawn. */
let last = { fps: 1, ptsUs: 0, chunk: 0, flags: 0, seq: 0 };
/** As far as the server has counted its frames, for all this page knows. */
let counted = 0;
const place = here();
const GONE = [4404, 4410];
const REFUSED = 4401;

const connection = new Connection({ onMessage: receive, onFrame: (frame) => player.push(frame), onLost: lose });
const send = (/** @type {object} */ message) => connection.send(message);
const player = new Player(find("canvas"), drawn);
const prompts = new PromptBox(find, (text) => {
  speed.promptSent();
  send({ type: "prompt", text });
});
const timeline = new Timeline(find("timeline"), (text) => prompts.send(text));
const steering = new Steering(find("steering-panel"), find("steering"), (message) => {
  speed.promptSent();
  send(message);
});

const picture = new WebRtcPicture(find("canvas"), place.session, {
  onDrawn: drawnElsewhere,
  onChange(on) {
    connection.setElsewhere(on);
    find("webrtc").setAttribute("aria-pressed", String(on));
  },
  onFailed: (reason) => toast(`${reason} The picture comes over the WebSocket.`),
});

const actions = {
  pause: () => send({ type: state.pause.includes("user") ? "resume" : "pause" }),
  reset: () => restart({ type: "reset" }),
  record: () => send({ type: records.active ? "record.stop" : "record.start" }),
  dice: () => restart({ type: "reseed" }),
  webrtc: () => picture.toggle(),
  pixels: () => screen.togglePixels(),
  fullscreen: () => screen.toggleFullscreen(),
  own: () => (place.session === "live" ? beginOwn().catch((error) => toast(error.message)) : endOwn()),
};
find("own").textContent = place.session === "live" ? "Own stream" : "Leave";
find("watch-link").href = `/#watch=${place.session}`;
find("watch-link").parentElement.hidden = place.session === "live" || place.role === "viewer";
find("script-link").href = `/v1/sessions/${place.session}/script.json`;
for (const [id, action] of Object.entries(actions)) find(id).addEventListener("click", action);
find("seed").addEventListener("change", setSeed);
find("fullscreen").hidden = !document.fullscreenEnabled; // on an iPhone only videos may
installKeys({ actions, steering, focusPrompt: () => find("prompt-text").focus() });

const ENDED = {
  idle_timeout: "Your stream ended: nobody used it.",
  max_duration: "Your stream ended: others were waiting.",
  queue_timeout: "Your place in the queue was given up.",
};

const handlers = {
  welcome(/** @type {any} */ message) {
    if (message.seq < counted) startAnew();
    counted = message.seq;
    if (message.model) showModel(message.model);
    message.prompts.forEach((/** @type {any} */ marker) => timeline.announce(marker));
    records.show(message.record);
    showState(message.state);
    offered().then((yes) => { find("webrtc").hidden = !yes; });
  },
  model: showModel,
  state: showState,
  "prompt.accepted": (/** @type {any} */ message) => timeline.setPending(message.text),
  "prompt.applied": (/** @type {any} */ message) => timeline.announce(message),
  "prompt.rejected"(/** @type {any} */ message) {
    timeline.setPending(null);
    toast(message.message);
  },
  chunk(/** @type {any} */ message) {
    timeline.addChunk(message);
    if (connection.pictureElsewhere) last.chunk = message.index;
    speed.chunk(message);
  },
  window: (/** @type {any} */ message) => memory.show(message, state.sink),
  stats: (/** @type {any} */ message) => speed.stats(message),
  record: (/** @type {any} */ message) => records.show(message),
  error: (/** @type {any} */ message) => toast(message.message),
  queue: (/** @type {any} */ message) => screen.queued(message),
  notice: (/** @type {any} */ message) => toast(message.detail),
  bye(/** @type {any} */ message) {
    const text = message.reason === "shutdown" ? "The server was stopped." : ENDED[message.reason] ?? "The session ended.";
    screen.veil(text, { still: true });
  },
};

/** Types this page does not know are left alone: a newer server may send them. @param {any} message */
function receive(message) {
  handlers[message.type]?.(message);
}

/** @param {any} frame */
function drawn(frame) {
  send({ type: "ack", seq: frame.seq, t: performance.now() });
  counted = Math.max(counted, frame.seq);
  if (frame.broken) return;
  show(frame, connection.ageMs(frame.sentUs));
}

/** A picture without a header: its time is counted on, and prompts show when they were applied. */
function drawnElsewhere() {
  const applied = timeline.announced.map((marker) => marker.pts_us);
  show({ ...last, flags: 0, seq: Infinity, ptsUs: Math.max(last.ptsUs + 1e6 / last.fps, ...applied) }, null);
}

/** @param {any} frame @param {number | null} ageMs */
function show(frame, ageMs) {
  last = frame;
  screen.drawn(state);
  const shown = timeline.advance(frame);
  speed.drawn(ageMs, shown.length > 0);
  if (shown.length) {
    timeline.setPending(null);
    screen.caption(shown[shown.length - 1].text);
  }
}

/** The same address, another server: frames and prompts count from 0 again. */
function startAnew() {
  timeline.clear();
  screen.caption("");
  last = { ...last, ptsUs: 0, chunk: 0, seq: 0 };
}

/** @param {any} model */
function showModel(model) {
  modelKnown = true;
  find("model-name").textContent = model.name;
  speed.setRate(model.fps);
  prompts.setExamples(model.examples);
  steering.build(model.steering);
  const steps = model.steps_available.map((/** @type {number} */ n) => ({ value: String(n), label: String(n) }));
  fillChoice(find("steps"), steps, (value) => restart({ type: "reset", steps: Number(value) }));
  const sinks = model.sinks.map((/** @type {string} */ name) => ({ value: name, label: name }));
  fillChoice(find("sink"), sinks, (value) => restart({ type: "reset", sink: value }));
}

/** @param {any} next */
function showState(next) {
  state = next;
  const paused = state.pause.includes("user");
  find("pause").textContent = paused ? "Resume" : "Pause";
  const steers = modelKnown && place.role === "controller";
  enable(steers, steers && state.state !== "failed");
  if (document.activeElement !== find("seed")) find("seed").value = state.seed_text ?? "";
  markChoice(find("steps"), String(state.steps));
  markChoice(find("sink"), state.sink);
  steering.mark(state.steering);
  screen.status(state);
}

/** @param {boolean} steers @param {boolean} prompted */
function enable(steers, prompted) {
  for (const id of ["pause", "reset", "record", "dice", "seed"]) find(id).disabled = !steers;
  for (const button of document.querySelectorAll("#steering button, #steps button, #sink button")) {
    /** @type {HTMLButtonElement} */ (button).disabled = !steers;
  }
  prompts.enable(prompted);
}

/** A new take is worth seeing, so it also ends a pause. @param {object} message */
function restart(message) {
  send(message);
  if (state.pause.includes("user")) send({ type: "resume" });
}

function setSeed() {
  const text = find("seed").value.trim();
  if (!/^\d+$/.test(text) || BigInt(text) >= 2n ** 63n) {
    find("seed").value = state.seed_text ?? "";
    toast("A seed is a whole number from 0 to 9223372036854775807.");
    return;
  }
  // Written by hand: JSON.stringify would round a seed beyond 2^53.
  connection.socket?.send(`{"type":"reseed","seed":${BigInt(text)}}`);
  if (state.pause.includes("user")) send({ type: "resume" });
  find("seed").blur();
}

function endOwn() {
  if (place.role === "controller") send({ type: "stop" });
  if (location.hash) location.hash = "";
  leaveOwn();
}

/** @param {number} seconds @param {number} code */
function lose(seconds, code) {
  if (GONE.includes(code) && place.session !== "live") {
    setTimeout(endOwn, 2500); // after the reason could be read
    return;
  }
  screen.lost(seconds);
  if (picture.wanted) picture.toggle();
  if (code === TAKEN) screen.veil("Another tab has taken this stream over. Reload this page to take it back.", { still: true });
  if (code === REFUSED) screen.veil("This server asks for a token: open the address it printed.", { still: true });
  find("recording-badge").hidden = true;
  enable(false, false);
}
