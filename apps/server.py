"""The web application around one live session: the page, its WebSocket, recordings and health."""

import asyncio
import contextlib
import importlib.resources
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, WebSocket
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from fewstep import __version__
from fewstep.apps.guard import Guard
from fewstep.apps.viewer_socket import ViewerSocket
from fewstep.streaming.session import SESSION_ID, LiveSession

log = logging.getLogger(__name__)


def create_app(
    session: LiveSession, *, on_failure: Callable[[Exception], Awaitable[None]] | None = None
) -> FastAPI:
    """The application. Starting it begins to load the model in the background and serves at once.

    `on_failure` is awaited when the model cannot be loaded.
    """

    async def run() -> None:
        try:
            await session.run()
        except Exception as error:
            if on_failure is not None:
                await on_failure(error)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(run())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await session.close()

    # The generated documentation pages would load scripts from another host.
    app = FastAPI(title="fewstep", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    web = Path(str(importlib.resources.files("fewstep.apps").joinpath("web")))

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(web / "index.html")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        ready = session.state == "running"
        return JSONResponse({"state": session.state, "reason": session.failure}, 200 if ready else 503)

    @app.get("/v1/engine")
    async def engine() -> JSONResponse:
        message = session.welcome("viewer")
        return JSONResponse({"version": __version__, "model": message["model"], "limits": message["limits"]})

    @app.get("/v1/sessions/{session_id}")
    async def status(session_id: str) -> JSONResponse:
        if session_id != SESSION_ID:
            return problem(404, "unknown_session", f"no session {session_id[:64]!r}")
        return JSONResponse(session.status())

    @app.get("/v1/sessions/{session_id}/frame.jpg")
    async def frame(session_id: str) -> Response:
        if session_id != SESSION_ID or session.last_frame is None:
            return problem(404, "no_frame", "no such session, or no frame yet")
        return Response(session.last_frame.payload, media_type="image/jpeg")

    @app.get("/v1/sessions/{session_id}/script.json")
    async def script(session_id: str) -> Response:
        if session_id != SESSION_ID or session.state == "loading" or session.last_frame is None:
            return problem(404, "no_script", "no such session, or nothing generated yet")
        text = json.dumps(session.ready().timeline.script(), indent=2) + "\n"
        attachment = {"Content-Disposition": 'attachment; filename="fewstep-script.json"'}
        return Response(text, media_type="application/json", headers=attachment)

    @app.get("/v1/recordings")
    async def recordings() -> JSONResponse:
        return JSONResponse(session.archive.finished())

    @app.get("/v1/recordings/{name}")
    async def recording(name: str) -> Response:
        path = session.archive.find(name)
        if path is None:
            return problem(404, "unknown_recording", "no such recording")
        return FileResponse(path, media_type="video/mp4", filename=name)

    @app.websocket("/v1/sessions/{session_id}/stream")
    async def stream(websocket: WebSocket, session_id: str) -> None:
        await ViewerSocket(websocket, session).serve(session_id)

    app.mount("/static", StaticFiles(directory=web), name="static")
    app.add_middleware(Guard)
    return app


def problem(status: int, code: str, detail: str) -> JSONResponse:
    """An error body as RFC 9457 has it."""
    body: dict[str, Any] = {"type": "about:blank", "title": code.replace("_", " "), "status": status}
    body |= {"detail": detail, "code": code}
    return JSONResponse(body, status, media_type="application/problem+json")
