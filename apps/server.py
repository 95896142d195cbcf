"""The web application around the live service: the page, its WebSocket, HTTP for programs, and health."""

import asyncio
import contextlib
import importlib.resources
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from fewstep import __version__
from fewstep.apps.access import Access, cross_origin
from fewstep.apps.guard import Guard
from fewstep.apps.metrics_page import render
from fewstep.apps.problems import Problem, problem, problem_responses
from fewstep.apps.sessions_api import sessions_router
from fewstep.apps.viewer_socket import ViewerSocket
from fewstep.apps.webrtc_api import WebRtc, available
from fewstep.streaming.messages import model_message
from fewstep.streaming.service import StreamService

LAG_SECONDS = 0.25


def create_app(
    service: StreamService,
    *,
    access: Access | None = None,
    on_failure: Callable[[Exception], Awaitable[None]] | None = None,
) -> FastAPI:
    """The application. Starting it begins to load the model in the background and serves at once.

    `on_failure` is awaited when the model cannot be loaded.
    """

    async def run() -> None:
        try:
            await service.run()
        except Exception as error:
            if on_failure is not None:
                await on_failure(error)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(run()), asyncio.create_task(_measure_lag(service))]
        yield
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await service.close()
        await webrtc.close()

    webrtc = WebRtc(service)
    access = Access() if access is None else access
    # The generated documentation pages would load scripts from another host.
    app = FastAPI(title="fewstep", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    web = Path(str(importlib.resources.files("fewstep.apps").joinpath("web")))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Problem, _told)
    app.add_exception_handler(HTTPException, _unknown)
    access.when_wrong = service.counters.count_wrong_token

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(web / "index.html")

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process answers at all."""
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", responses=problem_responses(503))
    async def readyz() -> Response:
        """Whether the engine is loaded and new sessions are welcome."""
        if service.draining:
            return problem(503, "shutting_down", "the server is being stopped")
        if not service.room.up:
            reason = service.shared.failure or "the model is being loaded"
            return problem(503, "engine_not_ready", reason)
        return JSONResponse({"state": service.shared.state})

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", responses=problem_responses(501), response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return render(service)

    @app.head("/v1/engine", include_in_schema=False)
    @app.get("/v1/engine")
    async def engine() -> JSONResponse:
        """The model, what it can do per second, and which weights it has."""
        room = service.room
        return JSONResponse(
            {
                "version": __version__,
                "up": room.up,
                "restarts": dict(room.restarts),
                "capacity_fps": room.speed.capacity_fps,
                "queue_depth": service.queue_depth,
                "transports": ["websocket", *["webrtc"] * available()],
                "model": None if room.info is None else model_message(room.info),
            }
        )

    @app.head("/v1/recordings", include_in_schema=False)
    @app.get("/v1/recordings")
    async def recordings() -> JSONResponse:
        """Finished recordings, newest first."""
        return JSONResponse(service.archive.finished())

    @app.head("/v1/recordings/{name}", include_in_schema=False)
    @app.get("/v1/recordings/{name}", responses=problem_responses(404), response_class=FileResponse)
    async def recording(name: str) -> Response:
        """One recording; byte ranges are served."""
        path = service.archive.find(name)
        if path is None:
            return problem(404, "unknown_recording", "no such recording")
        return FileResponse(path, media_type="video/mp4", filename=name)

    @app.websocket("/v1/sessions/{session_id}/stream")
    async def stream(websocket: WebSocket, session_id: str) -> None:
        await ViewerSocket(websocket, service).serve(session_id)

    app.include_router(sessions_router(service))
    app.include_router(webrtc.router())
    app.include_router(access.router())
    app.mount("/static", StaticFiles(directory=web), name="static")
    app.add_middleware(Guard, access=access)
    if access.origins:
        app.add_middleware(CORSMiddleware, **cross_origin(access.origins))
    return app


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return problem(422, "invalid_message", f"{where}: {first['msg']}"[:300])


async def _told(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _unknown(_: Request, error: Exception) -> Response:
    """What nobody has written a handler for: no such path, or not this method."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "not_allowed"}.get(error.status_code, "refused")
    answer = problem(error.status_code, code, error.detail)
    answer.headers.update(error.headers or {})
    return answer


async def _measure_lag(service: StreamService) -> None:
    """How late the event loop wakes: what every viewer's frames wait for at least."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_SECONDS
        await asyncio.sleep(LAG_SECONDS)
        service.counters.loop_lag.observe(max(0.0, loop.time() - due))
