"""One address for several servers: HTTP and WebSockets are handed on to the replica that has the session.

The first letter of a session's name says which replica made it, so nothing has to be remembered: whoever
comes back, with a resume token or to watch, is led to the same one. Checks of Host, Origin and token are the
replicas' own; the headers they need reach them as they came.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Origin, Subprotocol

from fewstep.apps.access import cross_origin
from fewstep.apps.guard import spoken
from fewstep.apps.problems import problem
from fewstep.apps.webrtc_api import REACHED_AT
from fewstep.streaming.service import replica_of
from fewstep.streaming.session import SESSION_ID

if TYPE_CHECKING:
    import httpx

METHODS = ["GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"]
HOP_BY_HOP = {
    "connection", "keep-alive", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade",
}  # fmt: skip
NOT_HANDED_ON = HOP_BY_HOP | {"x-forwarded-for", "x-forwarded-proto", REACHED_AT}
OWN_HEADERS = ("cookie", "authorization")
CONNECT_SECONDS, ASK_SECONDS = 5.0, 2.0
NO_SESSION, TRY_AGAIN = 4404, 1012
UNSAID = (1005, 1006)  # the replica is gone without a word; these may not be sent


@runtime_checkable
class Replicas(Protocol):
    """Which servers there are: the local port of each, None for one that is gone."""

    @property
    def ports(self) -> Sequence[int | None]: ...


def create_front(replicas: Replicas, *, origins: Collection[str] = ()) -> Starlette:
    """The application in front of the replicas. Needs httpx.

    Args:
        origins: other pages that are trusted, see `Access`.
    """
    front = Front(replicas)
    routes = [
        Route("/healthz", front.healthz),
        Route("/readyz", front.readyz),
        Route("/metrics", front.metrics),
        Route("/replicas/{number:int}/metrics", front.metrics_of),
        Route("/v1/sessions", front.create, methods=["POST"]),
        Route("/v1/sessions", front.listed, methods=["GET"]),
        Route("/v1/sessions/{session_id}", front.by_session, methods=METHODS),
        Route("/v1/sessions/{session_id}/{rest:path}", front.by_session, methods=METHODS),
        WebSocketRoute("/v1/sessions/{session_id}/stream", front.stream),
        Route("/{rest:path}", front.first, methods=METHODS),
    ]
    cors = [Middleware(CORSMiddleware, **cross_origin(origins))] if origins else []
    return Starlette(routes=routes, lifespan=front.lifespan, middleware=cors)


class Front:
    """Request handlers; see the module docstring."""

    def __init__(self, replicas: Replicas) -> None:
        try:
            import httpx
        except ImportError:
            raise ImportError("--replicas needs httpx: pip install httpx") from None
        self._replicas = replicas
        self._refused = (httpx.HTTPError, httpx.InvalidURL)
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        await self._http.aclose()

    # which one

    def _alive(self) -> list[int]:
        return [port for port in self._replicas.ports if port is not None]

    def _port_of(self, session_id: str) -> int | None:
        """The replica that has this session: the shared one is the first replica's that is there."""
        if session_id == SESSION_ID:
            return next(iter(self._alive()), None)
        number, ports = replica_of(session_id), self._replicas.ports
        return None if number is None or number >= len(ports) else ports[number]

    # what the front answers itself

    async def healthz(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Ready as soon as one replica is."""
        answers = await self._ask_all(request, "/readyz")
        if any(answer is not None and answer.status_code == 200 for answer in answers):
            return JSONResponse({"replicas": [bool(a is not None and a.is_success) for a in answers]})
        return problem(503, "engine_not_ready", "no replica is ready")

    async def metrics(self, _: Request) -> Response:
        """Which replicas are there; each has its own numbers under `/replicas/NUMBER/metrics`."""
        lines = ["# TYPE fewstep_replica_up gauge"]
        for number, port in enumerate(self._replicas.ports):
            lines.append(f'fewstep_replica_up{{replica="{number}"}} {int(port is not None)}')
        return PlainTextResponse("\n".join(lines) + "\n")

    async def metrics_of(self, request: Request) -> Response:
        number = request.path_params["number"]
        ports = self._replicas.ports
        if number >= len(ports) or ports[number] is None:
            return problem(404, "unknown_replica", f"no replica {number}")
        return await self._hand_on(request, ports[number], path="/metrics")

    async def listed(self, request: Request) -> Response:
        """The sessions of all replicas; of the shared ones the one that is shown."""
        merged: list[Any] = []
        refusal: httpx.Response | None = None
        for answer in await self._ask_all(request, "/v1/sessions"):
            if answer is None:
                continue
            if not answer.is_success:
                refusal = answer
                continue
            known = {session["id"] for session in merged}
            merged += [session for session in answer.json() if session["id"] not in known]
        if not merged and refusal is not None:
            return Response(refusal.content, refusal.status_code, media_type=refusal.headers["content-type"])
        return JSONResponse(merged) if merged else _nobody()

    # what is handed on

    async def first(self, request: Request) -> Response:
        """What every replica would answer alike: the page, recordings, tokens."""
        return await self._hand_on(request, next(iter(self._alive()), None))

    async def create(self, request: Request) -> Response:
        """A session of one's own, where the fewest are."""
        load = [
            (len(answer.json()), port)
            for answer, port in zip(
                await self._ask_all(request, "/v1/sessions"), self._replicas.ports, strict=False
            )
            if answer is not None and answer.is_success and port is not None
        ]
        return await self._hand_on(request, min(load)[1] if load else next(iter(self._alive()), None))

    async def by_session(self, request: Request) -> Response:
        session_id = request.path_params["session_id"]
        port = self._port_of(session_id)
        if port is None and self._alive():
            return problem(404, "unknown_session", f"no session {session_id[:64]!r}; its replica is gone")
        return await self._hand_on(request, port)

    async def _ask_all(self, request: Request, path: str) -> "list[httpx.Response | None]":
        """What each replica answers in the name of this client; None for one that does not."""
        headers = {name: request.headers[name] for name in OWN_HEADERS if name in request.headers}
        headers["x-forwarded-for"] = _client(request)  # whose limits these are

        async def ask(port: int | None) -> "httpx.Response | None":
            if port is None:
                return None
            try:
                return await self._http.get(
                    f"http://127.0.0.1:{port}{path}", headers=headers, timeout=ASK_SECONDS
                )
            except self._refused:
                return None

        return list(await asyncio.gather(*(ask(port) for port in self._replicas.ports)))

    async def _hand_on(self, request: Request, port: int | None, *, path: str | None = None) -> Response:
        if port is None:
            return _nobody()
        raw = request.scope.get("raw_path") or request.url.path.encode()
        target = path or raw.decode("latin-1")
        if request.url.query:
            target += f"?{request.url.query}"
        headers = [(n, v) for n, v in request.headers.items() if n not in NOT_HANDED_ON]
        headers += [("x-forwarded-for", _client(request)), ("x-forwarded-proto", request.url.scheme)]
        headers += [(REACHED_AT, request.scope["server"][0])] if request.scope.get("server") else []
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        try:
            asked = self._http.build_request(
                request.method,
                f"http://127.0.0.1:{port}{target}",
                headers=headers,
                content=request.stream() if has_body else None,
            )
            answer = await self._http.send(asked, stream=True)
        except self._refused:
            return _nobody()
        response = StreamingResponse(
            _body(answer, self._refused), answer.status_code, background=BackgroundTask(answer.aclose)
        )
        response.raw_headers = [(n.lower(), v) for n, v in answer.headers.raw if _kept(n)]
        return response

    async def stream(self, client: WebSocket) -> None:
        """Both ends' messages in both directions, until one of them closes."""
        port = self._port_of(client.path_params["session_id"])
        if port is None:
            await client.accept(spoken(client.scope))
            code = NO_SESSION if self._alive() else TRY_AGAIN
            await client.close(code, "no such session" if code == NO_SESSION else "no replica is there")
            return
        headers = [(name, client.headers[name]) for name in OWN_HEADERS if name in client.headers]
        origin = client.headers.get("origin")
        try:
            replica = await connect(
                f"ws://{client.headers.get('host', '')}{client.url.path}",
                host="127.0.0.1",
                port=port,
                origin=None if origin is None else Origin(origin),
                subprotocols=[Subprotocol(name) for name in client.scope.get("subprotocols", [])] or None,
                additional_headers=[*headers, ("X-Forwarded-For", _client(client))],
                user_agent_header=None,
                compression=None,
                max_size=None,
                ping_interval=None,
                proxy=None,
                open_timeout=CONNECT_SECONDS,
            )
        except (OSError, InvalidHandshake, InvalidURI, TimeoutError, ValueError):
            await client.close(1008)
            return
        async with replica:
            await client.accept(subprotocol=replica.subprotocol)
            await _exchange(client, replica)


async def _exchange(client: WebSocket, replica: ClientConnection) -> None:
    tasks = [asyncio.create_task(_up(client, replica)), asyncio.create_task(_down(client, replica))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _up(client: WebSocket, replica: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            event = await client.receive()
            if event["type"] == "websocket.disconnect":
                return
            text = event.get("text")
            await replica.send(event["bytes"] if text is None else text)


async def _down(client: WebSocket, replica: ClientConnection) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        try:
            async for item in replica:
                await (client.send_text(item) if isinstance(item, str) else client.send_bytes(item))
        except ConnectionClosed:
            pass
        code = replica.close_code
        if code is None or code in UNSAID:
            await client.close(TRY_AGAIN)
        else:
            await client.close(code, replica.close_reason)


async def _body(answer: "httpx.Response", broken: tuple[type[Exception], ...]) -> AsyncIterator[bytes]:
    """As it comes; a replica that dies ends it early."""
    try:
        async for part in answer.aiter_raw():
            yield part
    except broken:
        return


def _kept(name: bytes) -> bool:
    return name.decode("latin-1").lower() not in HOP_BY_HOP


def _client(connection: Request | WebSocket) -> str:
    return connection.client.host if connection.client else "127.0.0.1"


def _nobody() -> Response:
    return problem(503, "engine_not_ready", "no replica is there; try again in a moment")
