"""Signalling for WebRTC: one offer over HTTP, one answer. The package it needs is optional."""

import importlib.util
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from fewstep.apps.access import client_of
from fewstep.apps.problems import Problem, problem_responses
from fewstep.apps.sessions_api import SessionId
from fewstep.streaming import h264
from fewstep.streaming.limits import Buckets
from fewstep.streaming.protocol import BadMessage
from fewstep.streaming.service import StreamService

if TYPE_CHECKING:
    from fewstep.streaming.webrtc import Peers

MISSING = "WebRTC needs a package: pip install 'fewstep[webrtc]'"
MAX_SDP_CHARACTERS = 32_768
OFFERS_PER_SECOND, OFFER_BURST = 0.5, 10.0
REACHED_AT = "reached-at"
"""In this header a front tells its replicas at which address it was reached itself, and drops a client's."""


class Offer(BaseModel):
    """`sdp` offers to receive one video, with H.264 among its codecs."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sdp: Annotated[str, Field(max_length=MAX_SDP_CHARACTERS)]


class Answer(BaseModel):
    sdp: str


def available() -> bool:
    """Whether the package is there, without loading it, and the encoder of what it sends."""
    return importlib.util.find_spec("aiortc") is not None and h264.available()


class WebRtc:
    """The routes, and the viewers that came through them."""

    def __init__(self, service: StreamService) -> None:
        self._service = service
        self._peers: Peers | None = None
        self._offers = Buckets(OFFERS_PER_SECOND, OFFER_BURST)

    async def close(self) -> None:
        if self._peers is not None:
            await self._peers.close()

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

        @router.post("/{session_id}/webrtc/offer", responses=problem_responses(404, 415, 422, 429, 501, 503))
        async def offer(request: Request, session_id: SessionId, wanted: Offer) -> Answer:
            """Watch over WebRTC. Video alone: whoever steers keeps the WebSocket."""
            session = self._service.find(session_id)
            if session is None:
                raise Problem(404, "unknown_session", f"no session {session_id!r}")
            client = client_of(request.scope)
            if not self._offers.take(client):
                raise Problem(429, "rate_limited", "too many offers; wait a moment")
            if not session.audience.has_room(client):
                raise Problem(503, "server_full", "too many viewers")
            try:
                address = self._address(request)
                sdp = await self._loaded().answer(session, wanted.sdp, client=client, address=address)
            except BadMessage as error:
                raise Problem.of(error) from None
            return Answer(sdp=sdp)

        return router

    def _address(self, request: Request) -> str:
        """Where the client reached this machine: at our door, or at that of the front before us."""
        own = (request.scope.get("server") or ("127.0.0.1", None))[0]
        return request.headers.get(REACHED_AT, own) if self._service.is_replica else own

    def _loaded(self) -> "Peers":
        if not h264.available():
            raise Problem(501, "unsupported", h264.MISSING)
        if self._peers is None:
            try:
                from fewstep.streaming.webrtc import Peers
            except ImportError:
                raise Problem(501, "unsupported", MISSING) from None
            self._peers = Peers(self._service.counters)
        return self._peers
