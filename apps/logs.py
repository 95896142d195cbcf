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
CHATTER = {
    "torchao": "Failed to load ",
    "torchao.kernel.intmm": "Warning: Detected no triton",
    "torch.utils._pytree": "Calling register_constant() ",
    "lightning.pytorch.utilities.rank_zero": "\N{ELECTRIC LIGHT BULB} Tip: ",
}
"""What is said when transformers imports torchao, as it does wherever that is installed: kernels of other
devices are not there, and torch has another name for what torchao calls; and what Lightning would have people
buy. Nobody who streams or trains can act on it.
"""
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


class WithoutChatter(logging.Filter):
    """Leaves out the lines of `CHATTER`, and nothing else of the same loggers."""

    def filter(self, record: logging.LogRecord) -> bool:
        return CHATTER[record.name] not in record.getMessage()


WITHOUT_CHATTER = WithoutChatter()


def leave_out_chatter() -> None:
    """In this process, from now on; once is enough and more does no harm."""
    for name in CHATTER:
        logging.getLogger(name).addFilter(WITHOUT_CHATTER)


def configure(level: str, *, as_json: bool) -> None:
    """Send everything from `level` on to standard error, warnings of Python included."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else logging.Formatter(FORMAT))
    handler.addFilter(Discreet())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


def adopt(library: str) -> None:
    """Let loggers of a library that print by themselves, as torch's do, write as all others."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == library and isinstance(logger, logging.Logger):
            own = [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]
            for handler in own:
                logger.removeHandler(handler)
            logger.propagate |= bool(own)
