"""A session's pictures over WebRTC, with aiortc: one offer, one answer, one video track, no other servers.

The engine's H.264 goes out as it is, so one encoding serves every viewer. A peer is served at the one address
at which its offer reached us, and the addresses that an offer names are not used: we answer who comes and
proves to know the answer (RFC 8445, peer-reflexive candidates), and send to nobody else.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from fractions import Fraction

import av
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.exceptions import InternalError, InvalidStateError, OperationError
from aiortc.mediastreams import MediaStreamError
from aiortc.sdp import SessionDescription

from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.events import about
from fewstep.streaming.protocol import BadMessage
from fewstep.streaming.service_metrics import Counters
from fewstep.streaming.session import LiveSession
from fewstep.streaming.tap import Tap

log = logging.getLogger(__name__)

MOST_PEERS, PEERS_PER_CLIENT = 32, 8
CONNECT_SECONDS = 15.0
MICROSECOND = Fraction(1, 1_000_000)
NOT_USED = ("a=candidate:", "a=end-of-candidates")


class Peers:
    """All WebRTC viewers of a server; `close` ends them."""

    def __init__(self, counters: Counters) -> None:
        self._peers: dict[Peer, str] = {}
        self._counters = counters

    def __len__(self) -> int:
        return len(self._peers)

    async def answer(self, session: LiveSession, offer: str, *, client: str, address: str) -> str:
        """The answer to an offer from `client`, which reached this machine at `address`.

        `BadMessage` for what is no offer to receive one H.264 video, or when too many are served.
        """
        check_offer(offer)
        if len(self) >= MOST_PEERS or Counter(self._peers.values())[client] >= PEERS_PER_CLIENT:
            raise BadMessage("server_full", "too many WebRTC viewers; the WebSocket has more places")
        peer = Peer(session)
        self._peers[peer] = client
        self._counters.webrtc_peers += 1
        peer.closed.add_done_callback(lambda _: self._forget(peer))
        return await peer.answer(offer, address)

    async def close(self) -> None:
        await asyncio.gather(*(peer.close() for peer in list(self._peers)))

    def _forget(self, peer: "Peer") -> None:
        del self._peers[peer]
        self._counters.webrtc_peers -= 1


def check_offer(offer: str) -> None:
    """Refuse all but one section, of video, that its sender wants to receive."""
    try:
        media = SessionDescription.parse(offer).media
    except Exception as error:  # the parser meets nonsense with whatever error it causes
        raise BadMessage(
            "invalid_message", f"sdp: not a session description ({type(error).__name__})"
        ) from None
    if [section.kind for section in media] != ["video"] or media[0].direction not in ("recvonly", "sendrecv"):
        raise BadMessage("invalid_message", "sdp: offer exactly one video section, to be received")


def without_candidates(offer: str) -> str:
    return "".join(line for line in offer.splitlines(keepends=True) if not line.startswith(NOT_USED))


class Peer:
    """One connection. `closed` is done when nothing of it is left."""

    def __init__(self, session: LiveSession) -> None:
        self._session = session
        self._connection = RTCPeerConnection(
            RTCConfiguration(iceServers=[])
        )  # the default asks a server of others
        self._track = SessionTrack(session)
        self._connection.on("connectionstatechange", self._look)
        self._track.on("ended", self._close_soon)
        self._closing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._patience = self._loop.call_later(CONNECT_SECONDS, self._close_soon)
        self.closed: asyncio.Future[None] = self._loop.create_future()

    async def answer(self, offer: str, address: str) -> str:
        try:
            sender = self._connection.addTrack(self._track)
            (transceiver,) = self._connection.getTransceivers()
            transceiver.direction = "sendonly"
            codecs = RTCRtpSender.getCapabilities("video").codecs
            transceiver.setCodecPreferences([one for one in codecs if one.mimeType == "video/H264"])
            bind(sender, address)
            remote = RTCSessionDescription(sdp=without_candidates(offer), type="offer")
            await self._connection.setRemoteDescription(remote)
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        except BaseException as error:
            await self.close()
            if isinstance(error, OperationError):
                raise BadMessage("unsupported_media", "sdp: this browser offers no H.264") from None
            if isinstance(error, ValueError | InternalError | InvalidStateError):
                raise BadMessage("invalid_message", f"sdp: {error}"[:200]) from None
            raise
        log.info("a WebRTC viewer was answered", extra=about("webrtc.answered", self._session.id))
        return self._connection.localDescription.sdp

    async def close(self) -> None:
        """End it, once; whoever comes later waits for the same end."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    def _look(self) -> None:
        state = self._connection.connectionState
        if state == "connected":
            self._patience.cancel()
        elif state in ("failed", "closed"):
            self._close_soon()

    def _close_soon(self) -> None:
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())

    async def _close(self) -> None:
        self._patience.cancel()
        try:
            await self._connection.close()
        finally:
            self._track.stop()
            await self._track.leave()
            if not self.closed.done():
                self.closed.set_result(None)
            log.info("a WebRTC viewer is gone", extra=about("webrtc.closed", self._session.id))


class SessionTrack(MediaStreamTrack):
    """The session's H.264 pictures, when they are shown. It watches from when the first one is asked for."""

    kind = "video"

    def __init__(self, session: LiveSession) -> None:
        super().__init__()
        self._tap = Tap(session, h264=True)
        self._frames: AsyncIterator[EncodedFrame] | None = None

    async def recv(self) -> av.Packet:
        if self.readyState != "live":
            raise MediaStreamError
        if self._frames is None:
            await self._tap.__aenter__()
            self._frames = aiter(self._tap)
        while (frame := await anext(self._frames, None)) is not None:
            if frame.h264 is not None:  # JPEG until the engine has begun to encode for us
                packet = av.Packet(frame.h264)
                packet.pts, packet.time_base = frame.pts_us, MICROSECOND
                return packet
        self.stop()
        raise MediaStreamError

    async def leave(self) -> None:
        """Watch no longer."""
        if self._frames is not None:
            await self._tap.__aexit__(None, None, None)


def bind(sender: RTCRtpSender, address: str) -> None:
    """Let ICE listen at this address alone.

    By itself aioice listens at every address of the machine but the loopback one, and has no setting for it.
    """
    connection = sender.transport.transport.iceGatherer._connection

    async def gather_candidates() -> None:
        if not connection._local_candidates_start:
            connection._local_candidates_start = True
            found = await connection.get_component_candidates(component=1, addresses=[address])
            connection._local_candidates += found
            connection._local_candidates_end = True

    connection.gather_candidates = gather_candidates
