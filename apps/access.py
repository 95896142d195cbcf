"""Who may enter: everybody on the loopback interface, elsewhere who has the token."""

import hmac
import re
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.types import Scope

from fewstep.apps.problems import Problem, problem_responses
from fewstep.streaming.limits import Buckets
from fewstep.streaming.service_metrics import Counters

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
COOKIE = "fewstep-token"
BEARER_PROTOCOL = "bearer."
OPEN_PATHS = ("/", "/healthz", "/v1/auth")
OPEN_FOLDERS = ("/static/",)
FAILURES_PER_SECOND, FAILURE_BURST = 5 / 60, 5.0
TOKEN_LENGTHS = (16, 256)
WRITABLE = r"[!-~]*"
"""What fits into a cookie and a header as it is: visible ASCII."""


class TokenBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    token: str = Field(max_length=TOKEN_LENGTHS[1], pattern=f"^{WRITABLE}$")


class Access:
    """The rules of the door. Without a token everybody who reaches the server may enter."""

    def __init__(
        self, token: str | None = None, *, hosts: Iterable[str] = (), origins: Iterable[str] = ()
    ) -> None:
        if token is not None and not TOKEN_LENGTHS[0] <= len(token) <= TOKEN_LENGTHS[1]:
            least, most = TOKEN_LENGTHS
            raise ValueError(f"a token has {least} to {most} characters, this one {len(token)}")
        if token is not None and re.fullmatch(WRITABLE, token) is None:
            raise ValueError("a token has visible ASCII characters alone; 'auto' draws one")
        self.hosts = frozenset({*LOOPBACK_NAMES, *(host.lower() for host in hosts)})
        self.origins = frozenset(origins)
        self._token = token
        self._failures = Buckets(FAILURES_PER_SECOND, FAILURE_BURST)

    def admits(self, scope: Scope) -> bool:
        """Whether the request brings the token: in its cookie, its header or, for a socket, its protocols."""
        if self._token is None or open_to_all(scope):
            return True
        headers = Headers(scope=scope)
        kind, _, value = headers.get("authorization", "").partition(" ")
        given = [value] if kind.lower() == "bearer" else []
        offered = scope.get("subprotocols", [])
        given += [name.removeprefix(BEARER_PROTOCOL) for name in offered if name.startswith(BEARER_PROTOCOL)]
        given += _cookie(headers.get("cookie", ""))
        return any(self._matches(token) for token in given)

    def router(self, counters: Counters) -> APIRouter:
        """`POST /v1/auth` turns the token into a cookie, `DELETE` forgets it."""
        router = APIRouter(prefix="/v1/auth", tags=["access"])

        @router.post("", status_code=204, responses=problem_responses(401, 422, 429))
        async def enter(request: Request, body: TokenBody) -> Response:
            if self._token is not None and not self._matches(body.token):
                counters.auth_failures += 1
                client = request.client.host if request.client else ""
                if not self._failures.take(client):
                    raise Problem(429, "rate_limited", "too many wrong tokens; wait a minute")
                raise Problem(401, "unauthorized", "wrong token")
            response = Response(status_code=204)
            secure = request.url.scheme == "https"
            response.set_cookie(COOKIE, body.token, httponly=True, samesite="strict", secure=secure, path="/")
            return response

        @router.delete("", status_code=204)
        async def leave() -> Response:
            response = Response(status_code=204)
            response.delete_cookie(COOKIE, path="/")
            return response

        return router

    def _matches(self, token: str) -> bool:
        return self._token is not None and hmac.compare_digest(self._token.encode(), token.encode())


def open_to_all(scope: Scope) -> bool:
    """The page itself holds no secret; it needs to be there to ask for the token."""
    path = scope.get("path", "")
    return scope["type"] == "http" and (path in OPEN_PATHS or path.startswith(OPEN_FOLDERS))


def _cookie(header: str) -> list[str]:
    cookie: SimpleCookie = SimpleCookie()
    try:
        cookie.load(header)
    except CookieError:
        return []
    return [cookie[COOKIE].value] if COOKIE in cookie else []
