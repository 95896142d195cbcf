"""Logs of a server: a line of text or a JSON object each; prompts and tokens are never in them."""

import json
import logging
import re
from datetime import UTC, datetime

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
AT_LEAST = {
    "uvicorn": logging.INFO,
    "websockets": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpx": logging.WARNING,
    "aiortc": logging.WARNING,
    "aioice": logging.WARNING,
}
"""Libraries whose lower levels print what they send and receive, tokens and prompts included."""
QUERY = re.compile(r"\?\S*")


class JsonLines(logging.Formatter):
    """Time, level, event, session, logger, message and, for errors, where they came from.

    The event of a library's line is the name of its logger; a line about no session has none.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            "session": getattr(record, "session", None),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class Discreet(logging.Filter):
    """Leaves out what libraries say below their level, and cuts off what follows the path of a request.

    Nothing of ours is in a request's query, but somebody may try a token there.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        library = record.name.partition(".")[0]
        if record.levelno < AT_LEAST.get(library, 0):
            return False
        if library == "uvicorn" and isinstance(record.args, tuple):
            record.args = tuple(QUERY.sub("", one) if isinstance(one, str) else one for one in record.args)
        return True


def configure(level: str, *, as_json: bool) -> None:
    """Send everything from `level` on to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else logging.Formatter(FORMAT))
    handler.addFilter(Discreet())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
