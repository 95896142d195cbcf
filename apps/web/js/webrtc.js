// The picture over WebRTC, where both ends have it. Everything else stays on the WebSocket.

const CONNECT_MS = 8000;

/** Whether the server offers it and this browser can draw it. @returns {Promise<boolean>} */
export async function offered() {
  const able = "RTCPeerConnection" in window && "requestVideoFrameCallback" in HTMLVideoElement.prototype;
  if (!able) return false;
  const answer = await fetch("/v1/engine");
  return answer.ok && (await answer.json()).transports.includes("webrtc");
}

export class WebRtcPicture {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {string} session
   * @param {{onDrawn: () => void, onChange: (on: boolean) => void, onFailed: (reason: string) => void}} handlers
   */
  constructor(canvas, session, handlers) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
    this.session = session;
    this.handlers = handlers;
    this.wanted = false;
    /** @type {RTCPeerConnection | null} */
    this.peer = null;
    this.late = 0;
    // A hidden page draws nothing, and the engine may rest.
    document.addEventListener("visibilitychange", () => this.follow());
  }

  toggle() {
    this.wanted = !this.wanted;
    this.follow();
  }

  follow() {
    if (this.wanted && !document.hidden) this.open();
    else this.close();
  }

  async open() {
    if (this.peer) return;
    const peer = new RTCPeerConnection({ iceServers: [] }); // nobody else is asked for the way
    this.peer = peer;
    this.late = window.setTimeout(() => this.fail(peer, "WebRTC does not reach the server from here."), CONNECT_MS);
    peer.addTransceiver("video", { direction: "recvonly" });
    peer.ontrack = (event) => this.play(peer, event.track);
    peer.onconnectionstatechange = () => {
      if (peer.connectionState === "failed") this.fail(peer, "The WebRTC connection was lost.");
    };
    try {
      await peer.setLocalDescription();
      const answer = await fetch(`/v1/sessions/${this.session}/webrtc/offer`, {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ sdp: peer.localDescription?.sdp }),
      });
      const body = await answer.json();
      if (!answer.ok) throw new Error(body.detail);
      await peer.setRemoteDescription({ type: "answer", sdp: body.sdp });
    } catch (error) {
      this.fail(peer, /** @type {Error} */ (error).message);
    }
  }

  /** @param {RTCPeerConnection} peer @param {MediaStreamTrack} track */
  play(peer, track) {
    const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
    video.srcObject = new MediaStream([track]);
    const draw = () => {
      if (peer !== this.peer) return;
      if (this.late) this.arrived();
      if (this.canvas.width !== video.videoWidth || this.canvas.height !== video.videoHeight) {
        this.canvas.width = video.videoWidth;
        this.canvas.height = video.videoHeight;
      }
      this.context.drawImage(video, 0, 0);
      this.handlers.onDrawn();
      video.requestVideoFrameCallback(draw);
    };
    video.requestVideoFrameCallback(draw);
    video.play().catch(() => {}); // ended before it began
  }

  arrived() {
    clearTimeout(this.late);
    this.late = 0;
    this.handlers.onChange(true);
  }

  /** @param {RTCPeerConnection} peer @param {string} reason */
  fail(peer, reason) {
    if (peer !== this.peer) return;
    this.wanted = false;
    this.close();
    this.handlers.onFailed(reason);
  }

  close() {
    if (!this.peer) return;
    clearTimeout(this.late);
    this.late = 0;
    this.peer.close();
    this.peer = null;
    this.handlers.onChange(false);
  }
}
