"""Sessions over plain HTTP: create, look at, steer and end them, and take their pictures with other tools."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from fewstep.apps.access import client_of
from fewstep.apps.live_files import MJPEG_TYPE, live_mjpeg, live_mp4
from fewstep.apps.problems import Problem, problem_responses
from fewstep.streaming import h264
from fewstep.streaming.limits import Buckets
from fewstep.streaming.protocol import MAX_SEED, BadMessage
from fewstep.streaming.service import StreamService
from fewstep.streaming.session import LiveSession
from fewstep.streaming.takes import Start

CREATIONS_PER_SECOND, CREATION_BURST = 10 / 60, 10.0
RESUME_HEADER = "Resume-Token"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class SessionRequest(Body):
    """How the session begins; what is left out the model chooses, or chance."""

    prompt: Annotated[str, Field(max_length=4000)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    sink: Annotated[str, Field(max_length=64)] = "ema"


class PromptRequest(Body):
    text: Annotated[str, Field(max_length=4000)]


class ResetRequest(Body):
    """Back to chunk 0; what is left out stays as it is."""

    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    sink: Annotated[str, Field(max_length=64)] | None = None


class SessionCreated(BaseModel):
    """`resume_token` is told once: whoever has it steers the session, also after a lost connection."""

    id: str
    state: str
    resume_token: str
    ws_url: str
    viewer_url: str
    position: int | None
    eta_s: int | None


class Accepted(BaseModel):
    rev: int


SessionId = Annotated[str, Path(max_length=64)]
Resume = Annotated[str | None, Header(alias=RESUME_HEADER, max_length=64)]


def sessions_router(service: StreamService) -> APIRouter:
    """All routes below `/v1/sessions`."""
    router = APIRouter(prefix="/v1/sessions", tags=["sessions"])
    creations = Buckets(CREATIONS_PER_SECOND, CREATION_BURST)

    def found(session_id: str) -> LiveSession:
        session = service.find(session_id)
        if session is None:
            raise Problem(404, "unknown_session", f"no session {session_id[:64]!r}")
        return session

    def steered(session_id: str, resume: str | None) -> LiveSession:
        session = found(session_id)
        if not service.may_control(session, resume):
            raise Problem(403, "forbidden", f"steering this session needs its token in {RESUME_HEADER}")
        service.called(session)
        return session

    def watched(session_id: str, client: str) -> LiveSession:
        session = found(session_id)
        if not session.audience.has_room(client):
            raise Problem(503, "server_full", "too many viewers")
        return session

    @router.post(
        "", status_code=201, responses={202: {"model": SessionCreated}, **problem_responses(422, 429, 503)}
    )
    async def create(request: Request, response: Response, wanted: SessionRequest) -> SessionCreated:
        """A session of one's own: 201 when it begins at once, 202 when it has to wait in the queue."""
        if not creations.take(client_of(request.scope)):
            raise Problem(429, "rate_limited", "too many sessions; wait a moment")
        try:
            guest = service.create(Start(**wanted.model_dump()))
        except BadMessage as error:
            raise Problem.of(error) from None
        session, place = guest.session, service.place(guest.session) or {}
        response.status_code = 202 if session.state == "queued" else 201
        return SessionCreated(
            id=session.id,
            state=session.state,
            resume_token=guest.resume_token,
            ws_url=f"/v1/sessions/{session.id}/stream",
            viewer_url=f"/#watch={session.id}",
            position=place.get("position"),
            eta_s=place.get("eta_s"),
        )

    @router.head("", include_in_schema=False)
    @router.get("")
    async def listed() -> JSONResponse:
        """The sessions that anybody who may enter can watch."""
        return JSONResponse(
            [
                {"id": session.id, "state": session.state, "viewers": len(session.viewers)}
                for session in service.sessions()
            ]
        )

    @router.head("/{session_id}", include_in_schema=False)
    @router.get("/{session_id}", responses=problem_responses(404, 422))
    async def status(session_id: SessionId, resume: Resume = None) -> JSONResponse:
        """Its state, and its place in the queue. With its token this keeps it, as a connection would."""
        session = found(session_id)
        if resume is not None and service.may_control(session, resume):
            service.called(session)
        return JSONResponse({**session.status(), "queue": service.place(session)})

    @router.delete("/{session_id}", status_code=204, responses=problem_responses(403, 404, 422))
    async def end(session_id: SessionId, resume: Resume = None) -> Response:
        """End a session of one's own; its recording is finished first."""
        session = steered(session_id, resume)
        if not await service.end(session.id):
            raise Problem(403, "forbidden", "the shared session goes on as long as the server")
        return Response(status_code=204)

    steering = problem_responses(403, 404, 409, 422, 503)

    @router.post("/{session_id}/prompt", status_code=202, responses=steering)
    async def prompt(session_id: SessionId, wanted: PromptRequest, resume: Resume = None) -> Accepted:
        """Switch to this prompt at the next chunk."""
        session = steered(session_id, resume)
        with_problem = _told(lambda: session.prompt(wanted.text))
        return Accepted(rev=with_problem)

    @router.post("/{session_id}/pause", responses=steering)
    async def pause(session_id: SessionId, resume: Resume = None) -> JSONResponse:
        session = steered(session_id, resume)
        _told(session.pause)
        return JSONResponse(session.status())

    @router.post("/{session_id}/resume", responses=steering)
    async def resume_(session_id: SessionId, resume: Resume = None) -> JSONResponse:
        session = steered(session_id, resume)
        _told(session.resume)
        return JSONResponse(session.status())

    @router.post("/{session_id}/reset", responses=steering)
    async def reset(session_id: SessionId, wanted: ResetRequest, resume: Resume = None) -> JSONResponse:
        """Begin a new take."""
        session = steered(session_id, resume)
        _told(lambda: session.restart(**wanted.model_dump()))
        return JSONResponse(session.status())

    @router.head("/{session_id}/frame.jpg", include_in_schema=False)
    @router.get("/{session_id}/frame.jpg", responses=problem_responses(404, 422), response_class=Response)
    async def frame(session_id: SessionId) -> Response:
        """The picture of the moment."""
        last = found(session_id).last_frame
        if last is None:
            raise Problem(404, "no_frame", "no frame yet")
        return Response(last.payload, media_type="image/jpeg")

    @router.get("/{session_id}/script.json", responses=problem_responses(404, 422))
    async def script(session_id: SessionId) -> Response:
        """The present take, for `fewstep video --prompts`."""
        session = found(session_id)
        try:
            fields = session.ready().timeline.script()
        except ValueError:
            raise Problem(404, "no_script", "nothing has been generated yet") from None
        attachment = {"Content-Disposition": 'attachment; filename="fewstep-script.json"'}
        text = json.dumps(fields, indent=2) + "\n"
        return Response(text, media_type="application/json", headers=attachment)

    @router.get(
        "/{session_id}/live.mjpeg",
        responses=problem_responses(404, 422, 503),
        response_class=StreamingResponse,
    )
    async def mjpeg(request: Request, session_id: SessionId) -> StreamingResponse:
        """An endless series of JPEG pictures, for an `<img>` or any viewer of network cameras."""
        client = client_of(request.scope)
        return StreamingResponse(live_mjpeg(watched(session_id, client), client), media_type=MJPEG_TYPE)

    @router.get(
        "/{session_id}/live.mp4",
        responses=problem_responses(404, 422, 501, 503),
        response_class=StreamingResponse,
    )
    async def mp4(request: Request, session_id: SessionId) -> StreamingResponse:
        """Fragmented MP4 without end, for players."""
        if not h264.available():
            raise Problem(501, "unsupported", h264.MISSING)
        client = client_of(request.scope)
        return StreamingResponse(live_mp4(watched(session_id, client), client), media_type="video/mp4")

    return router


def _told(action: Any) -> Any:
    """Do it; what a WebSocket would be told as an error becomes a problem."""
    try:
        return action()
    except BadMessage as error:
        raise Problem.of(error) from None
