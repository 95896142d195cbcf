"""Who may enter: everybody on the loopback interface, elsewhere who has the token."""

import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from enum import Enum
from http.cookies import CookieError, SimpleCookie
from ipaddress import AddressValueError, IPv6Address
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.types import Scope

from fewstep.apps.problems import Problem, problem_responses
from fewstep.streaming.limits import KEYS_KEPT, Buckets

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
COOKIE = "fewstep-token"
BEARER_PROTOCOL = "bearer."
OPEN_PATHS = ("/", "/healthz", "/v1/auth")
OPEN_FOLDERS = ("/static/",)
FAILURES_PER_SECOND, FAILURE_BURST = 5 / 60, 5.0
TOKEN_LENGTHS = (16, 256)
WRITABLE = r"[!-~]*"
"""What fits into a cookie and a header as it is: visible ASCII."""


class Verdict(Enum):
    """Of a request: may it enter, does it lack the token, or were there too many wrong ones?"""

    ADMITTED = "admitted"
    REFUSED = "a token is needed: Authorization: Bearer TOKEN"
    TOO_MANY = "too many wrong tokens from this address; wait a minute"


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
        self.origins = frozenset(map(checked_origin, origins))
        self.when_wrong: Callable[[], None] = lambda: None
        """Called at each wrong token."""
        self._token = token
        self._failures = Buckets(FAILURES_PER_SECOND, FAILURE_BURST)
        self._wrong: OrderedDict[bytes, None] = OrderedDict()

    def judge(self, scope: Scope) -> Verdict:
        """Whether the request brings the token: in its cookie, its header or, for a socket, its protocols."""
        if self._token is None or open_to_all(scope):
            return Verdict.ADMITTED
        headers = Headers(scope=scope)
        kind, _, value = headers.get("authorization", "").partition(" ")
        given = [value] if kind.lower() == "bearer" else []
        offered = scope.get("subprotocols", [])
        given += [name.removeprefix(BEARER_PROTOCOL) for name in offered if name.startswith(BEARER_PROTOCOL)]
        given += _cookie(headers.get("cookie", ""))
        for token in given:
            verdict = self._try(client_of(scope), token)
            if verdict is not Verdict.REFUSED:
                return verdict
        return Verdict.REFUSED

    def router(self) -> APIRouter:
        """`POST /v1/auth` turns the token into a cookie, `DELETE` forgets it."""
        router = APIRouter(prefix="/v1/auth", tags=["access"])

        @router.post("", status_code=204, responses=problem_responses(401, 422, 429))
        async def enter(request: Request, body: TokenBody) -> Response:
            verdict = self._try(client_of(request.scope), body.token)
            if verdict is Verdict.TOO_MANY:
                raise Problem(429, "rate_limited", verdict.value)
            if verdict is Verdict.REFUSED:
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

    def _try(self, client: str, token: str) -> Verdict:
        """Compare a token, unless this client has tried too many: then the right one is not told either.

        The same wrong one again is no guess: a page left open brings its old cookie for ever.
        """
        if self._token is None:
            return Verdict.ADMITTED
        known = hashlib.sha256(f"{client} {token}".encode("utf-8", "surrogatepass")).digest()
        if known in self._wrong:
            self.when_wrong()
            return Verdict.REFUSED
        if not self._failures.left(client):
            return Verdict.TOO_MANY
        if hmac.compare_digest(self._token.encode(), token.encode("utf-8", "surrogatepass")):
            return Verdict.ADMITTED
        self.when_wrong()
        self._failures.take(client)
        self._wrong[known] = None
        if len(self._wrong) > KEYS_KEPT:
            self._wrong.popitem(last=False)
        return Verdict.REFUSED


def checked_origin(origin: str) -> str:
    """As browsers write it; anything else would never be met."""
    parts = urlsplit(origin)
    if (
        parts.scheme not in ("http", "https")
        or origin != f"{parts.scheme}://{parts.netloc}"
        or not parts.netloc
    ):
        raise ValueError(f"an origin is http:// or https:// with a host and perhaps a port, got {origin!r}")
    return origin


def cross_origin(origins: Iterable[str]) -> dict[str, Any]:
    """What pages of these origins may ask and read, as Starlette's `CORSMiddleware` takes it; no cookies."""
    headers = ["Authorization", "Content-Type", "Resume-Token"]
    allowed = {"allow_origins": sorted(origins), "allow_methods": ["GET", "POST", "DELETE"]}
    return {**allowed, "allow_headers": headers, "expose_headers": ["Retry-After"]}


def client_of(scope: Scope) -> str:
    """Whom limits count: an IPv4 address, or the network of an IPv6 one, within which everybody has many."""
    host = (scope.get("client") or ("",))[0]
    try:
        address = IPv6Address(host)
    except AddressValueError:
        return host
    return str(address.ipv4_mapped or IPv6Address(address.packed[:8] + bytes(8)))


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
