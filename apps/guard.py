"""Host and Origin checks and the security headers, around every request.

The server listens on the loopback interface only, but any page in the user's browser can reach that. The
Host check stops DNS rebinding; the Origin check stops foreign pages from opening the WebSocket, which CORS
does not cover.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
FORBIDDEN_ORIGIN = 4403


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not allowed_host(host):
            await _refuse_host(scope, receive, send)
        elif scope["type"] == "websocket" and not same_origin(headers.get("origin"), host):
            await _refuse_origin(receive, send)
        elif scope["type"] == "websocket":
            await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, _with_headers(send, host))


def allowed_host(host: str) -> bool:
    """True for a loopback name with any port."""
    try:
        return urlsplit(f"//{host}").hostname in LOOPBACK_NAMES
    except ValueError:
        return False


def same_origin(origin: str | None, host: str) -> bool:
    """True for our own page, and for programs that send no Origin at all."""
    return origin is None or origin in (f"http://{host}", f"https://{host}")


def content_policy(host: str) -> str:
    """Nothing from elsewhere, nothing inline, no socket but our own."""
    return (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self'; "
        f"connect-src 'self' ws://{host} wss://{host}; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    )


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
        response = PlainTextResponse("this server answers to 127.0.0.1 and localhost only\n", 400)
        await response(scope, receive, send)
    else:
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": "unknown host"})


async def _refuse_origin(receive: Receive, send: Send) -> None:
    """Accept first: a close before that reaches the page without its code."""
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": FORBIDDEN_ORIGIN, "reason": "foreign origin"})
