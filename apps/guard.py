"""Host, Origin, token, size and rate checks and the security headers, around every request.

The server listens on the loopback interface unless told otherwise, but any page in the user's browser can
reach that. The Host check stops DNS rebinding; the Origin check stops foreign pages from opening the
WebSocket or posting, which CORS does not cover.
"""

from collections import Counter
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewstep.apps.access import LOOPBACK_NAMES, Access, Verdict, client_of
from fewstep.apps.problems import Problem, problem
from fewstep.streaming.limits import Buckets
from fewstep.streaming.protocol import SUBPROTOCOL

FORBIDDEN_ORIGIN, UNAUTHORIZED, TOO_MANY = 4403, 4401, 4429
MAX_BODY_BYTES = 65_536
TOO_LONG = f"a body has at most {MAX_BODY_BYTES} bytes"
REQUESTS_PER_SECOND, REQUEST_BURST = 100.0, 400.0
CONNECTIONS, CONNECTIONS_PER_CLIENT = 256, 128
READING = ("GET", "HEAD", "OPTIONS")


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, access: Access | None = None) -> None:
        self._app = app
        self._access = Access() if access is None else access
        self._requests = Buckets(REQUESTS_PER_SECOND, REQUEST_BURST)
        self._sockets: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")
        if not allowed_host(host, self._access.hosts):
            await _refuse_host(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        else:
            await self._http(scope, receive, _with_headers(send, host))

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = client_of(scope)
        if not self._own(scope):
            await _refuse_socket(scope, receive, send, FORBIDDEN_ORIGIN, "foreign origin")
        elif (verdict := self._access.judge(scope)) is not Verdict.ADMITTED:
            code = TOO_MANY if verdict is Verdict.TOO_MANY else UNAUTHORIZED
            await _refuse_socket(scope, receive, send, code, verdict.value)
        elif self._sockets.total() >= CONNECTIONS or self._sockets[client] >= CONNECTIONS_PER_CLIENT:
            await _refuse_socket(scope, receive, send, TOO_MANY, "too many connections")
        else:
            self._sockets[client] += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._sockets[client] -= 1
                if not self._sockets[client]:
                    del self._sockets[client]

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None
        if not self._requests.take(client_of(scope)):
            refusal = problem(429, "rate_limited", "too many requests; wait a moment")
        elif scope["method"] not in READING and not self._own(scope):
            refusal = problem(403, "forbidden_origin", "another site's page may not do this")
        elif (verdict := self._access.judge(scope)) is Verdict.TOO_MANY:
            refusal = problem(429, "rate_limited", verdict.value)
        elif verdict is Verdict.REFUSED:
            refusal = problem(401, "unauthorized", verdict.value)
        elif _declared_length(scope) > MAX_BODY_BYTES:
            refusal = problem(413, "too_long", TOO_LONG)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._app(scope, _limited(receive), send)

    def _own(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        return same_origin(origin, headers.get("host", "")) or origin in self._access.origins


def allowed_host(host: str, hosts: frozenset[str] = frozenset(LOOPBACK_NAMES)) -> bool:
    """True for one of the names and for any address, with any port: no name server stands between."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return "@" not in host and (name in hosts or _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def same_origin(origin: str | None, host: str) -> bool:
    """True for our own page, and for programs that send no Origin at all."""
    return origin is None or origin in (f"http://{host}", f"https://{host}")


def spoken(scope: Scope) -> str | None:
    """Our protocol if it is offered; a browser that is answered in none takes the connection for broken."""
    return SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", []) else None


def content_policy(host: str) -> str:
    """Nothing from elsewhere, nothing inline, no socket but our own."""
    return (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self'; "
        f"connect-src 'self' ws://{host} wss://{host}; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    )


def _declared_length(scope: Scope) -> int:
    """What Content-Length says; nonsense is left to the counting of what really comes."""
    text = Headers(scope=scope).get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() else 0


def _limited(receive: Receive) -> Receive:
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise Problem(413, "too_long", TOO_LONG)
        return message

    return receive_limited


def _with_headers(send: Send, host: str) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = content_policy(host)
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "no-referrer"
            headers["Cross-Origin-Opener-Policy"] = "same-origin"
            headers.setdefault("Cache-Control", "no-cache")
        await send(message)

    return send_with_headers


async def _refuse_host(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        response = PlainTextResponse("this server does not answer to that name; see --allowed-host\n", 400)
        await response(scope, receive, send)
    else:
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": "unknown host"})


async def _refuse_socket(scope: Scope, receive: Receive, send: Send, code: int, reason: str) -> None:
    """Accept first, in the page's own protocol: otherwise the close reaches it without its code."""
    await receive()
    await send({"type": "websocket.accept", "subprotocol": spoken(scope)})
    await send({"type": "websocket.close", "code": code, "reason": reason})
