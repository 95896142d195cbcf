"""Error bodies as RFC 9457 has them."""

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from fewstep.streaming.protocol import BadMessage

MEDIA_TYPE = "application/problem+json"
STATUSES = {
    "engine_not_ready": 503,
    "forbidden": 403,
    "rate_limited": 429,
    "server_full": 503,
    "session_ended": 409,
    "shutting_down": 503,
    "unknown_session": 404,
    "unsupported_media": 415,
}
RETRY_SECONDS = {"rate_limited": 10, "server_full": 10, "engine_not_ready": 2, "shutting_down": 30}
DESCRIPTIONS = {
    400: "the host is not served here",
    401: "a token is needed",
    403: "not yours to do",
    404: "not there",
    409: "over already",
    413: "too long",
    415: "not of the kind asked for",
    422: "makes no sense",
    429: "too often",
    501: "a package is missing",
    503: "not now",
}


class ProblemBody(BaseModel):
    """What every error says: `code` is for programs, `detail` for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str


class Problem(HTTPException):
    """An answer other than success, raised from within a request."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(status, detail)
        self.code = code

    @classmethod
    def of(cls, error: BadMessage) -> "Problem":
        """What a WebSocket would be told as an error message."""
        return cls(STATUSES.get(error.code, 422), error.code, str(error))

    def response(self) -> JSONResponse:
        return problem(self.status_code, self.code, self.detail)


def problem(status: int, code: str, detail: str) -> JSONResponse:
    body = ProblemBody(
        type="about:blank", title=code.replace("_", " "), status=status, detail=detail, code=code
    )
    headers = {"Retry-After": str(RETRY_SECONDS[code])} if code in RETRY_SECONDS else None
    return JSONResponse(body.model_dump(), status, headers=headers, media_type=MEDIA_TYPE)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for the OpenAPI document."""
    schema = {"schema": {"$ref": "#/components/schemas/ProblemBody"}}
    return {
        status: {"model": ProblemBody, "description": DESCRIPTIONS[status], "content": {MEDIA_TYPE: schema}}
        for status in statuses
    }
