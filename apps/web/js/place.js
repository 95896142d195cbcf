// Which session this tab shows: the shared one, one of its own, or somebody else's to watch.

import { inTab } from "./store.js";

const STORE = "fewstep.own";
const LOOPBACK = ["localhost", "127.0.0.1", "[::1]"];
const H264 = "avc1.42E01F";

const asked = new URLSearchParams(location.hash.slice(1));

/** @returns {{session: string, role: string, resume?: string}} */
export function here() {
  const watched = asked.get("watch");
  if (watched) return { session: watched, role: "viewer" };
  const own = inTab.get(STORE);
  return own ? { session: own.id, role: "controller", resume: own.resume_token } : { session: "live", role: "controller" };
}

/** Ask for a session of one's own; the page then begins anew in it, or in the queue for it. */
export async function beginOwn() {
  if (!inTab.set(STORE, null)) throw new Error("A stream of your own needs this browser's storage: allow it for this page.");
  const answer = await fetch("/v1/sessions", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: "{}",
  });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.detail);
  inTab.set(STORE, { id: body.id, resume_token: body.resume_token });
  location.reload();
}

/** Back to the shared session. */
export function leaveOwn() {
  inTab.remove(STORE);
  location.reload();
}

/** A token in the address becomes a cookie, and is gone from the address. @returns {Promise<void>} */
export async function enter() {
  const token = asked.get("token");
  if (!token) return;
  history.replaceState(null, "", location.pathname);
  const headers = { "Content-Type": "application/json" };
  await fetch("/v1/auth", { method: "POST", headers, body: JSON.stringify({ token }) });
}

/** JPEG on this machine, where bandwidth is free; H.264 from elsewhere, if this browser has it. */
export async function codecs() {
  if (!("VideoDecoder" in window)) return ["jpeg"];
  const wanted = asked.get("codec") ?? (LOOPBACK.includes(location.hostname) ? "jpeg" : "h264");
  const { supported } = await VideoDecoder.isConfigSupported({ codec: H264 });
  return supported && wanted === "h264" ? ["h264", "jpeg"] : ["jpeg"];
}
