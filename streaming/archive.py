"""The folder of recordings: a session writes at most one, the finished ones can be fetched by name."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from av.error import FFmpegError

from fewstep.streaming.events import about
from fewstep.streaming.host import Recorded, RecordOrder
from fewstep.streaming.journal import locked
from fewstep.streaming.protocol import BadMessage
from fewstep.streaming.recording import NAME, finish, journal_of, new_name, part_of

log = logging.getLogger(__name__)

LISTED = 50


class Archive:
    """One session's recordings. `order` is what the chunk loop hands to the engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.order: RecordOrder | None = None
        self._stands: Recorded | None = None
        self._reason: str | None = None

    @property
    def active(self) -> bool:
        return self.order is not None

    @property
    def full(self) -> str | None:
        """Why the recording can take no more frames, or None."""
        return None if self._stands is None else self._stands.full

    def start(self, metadata: Mapping[str, Any]) -> None:
        """Record from the next chunk on."""
        if self.order is not None:
            raise BadMessage("already_recording", "record.start: a recording is running", ref="record.start")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadMessage("disk_error", f"record.start: {error}", ref="record.start") from None
        path = self.folder.resolve() / new_name()
        self.order = RecordOrder(path=str(path), metadata=metadata)
        self._stands = self._reason = None

    def note(self, recorded: Recorded | None) -> None:
        """How the recording stands after a chunk."""
        if self.order is not None and recorded is not None:
            self._stands = recorded

    async def stop(self, close: Callable[[], Awaitable[None]]) -> None:
        """Finish the file, after `close` has let a chunk under way still be written."""
        order, self.order = self.order, None
        if order is None:
            return
        self._reason = reason = self.full
        await close()
        try:
            frames = await asyncio.to_thread(finish, Path(order.path))
        except (OSError, FFmpegError) as error:
            reason = f"disk_error: {error.strerror}; the recording is kept as it is"
            log.error("cannot finish %s", order.path, exc_info=error, extra=about("recording.unfinished"))
        else:
            reason = reason or (None if frames else "empty")
            log.info("recorded %d frames to %s", frames, order.path, extra=about("recording.finished"))
        if self.order is None:  # no other was begun meanwhile
            self._reason, self._stands = reason, None

    def status(self) -> dict[str, Any]:
        """The `record` message."""
        order, stands = self.order, self._stands
        return {
            "type": "record",
            "state": "idle" if order is None else "recording",
            "name": None if order is None else Path(order.path).name,
            "frames": 0 if stands is None else stands.frames,
            "bytes": 0 if stands is None else stands.bytes,
            "reason": self._reason,
            "finished": self.finished(),
        }

    def finished(self) -> list[dict[str, Any]]:
        """Finished recordings, newest first."""
        if not self.folder.is_dir():
            return []
        paths = sorted((path for path in self.folder.iterdir() if NAME.fullmatch(path.name)), reverse=True)
        return [{"name": path.name, "bytes": path.stat().st_size} for path in paths[:LISTED]]

    def find(self, name: str) -> Path | None:
        """The file of a finished recording; only names we made ourselves are looked up."""
        path = self.folder / name
        return path if NAME.fullmatch(name) and path.is_file() and not path.is_symlink() else None


def recover(folder: Path) -> list[str]:
    """Finish what a crash left in the folder; the names of the recordings that are whole now.

    What another server is just writing is locked and left alone, and so is what cannot be read.
    """
    recovered = []
    for journal in sorted(folder.glob("rec_*.journal.jsonl")) if folder.is_dir() else []:
        path = journal.with_name(journal.name.removesuffix(".journal.jsonl") + ".mp4")
        ours = NAME.fullmatch(path.name) and journal_of(path) == journal
        if not ours or journal.is_symlink() or not part_of(path).is_file() or locked(journal):
            continue
        with contextlib.suppress(OSError, ValueError, LookupError):
            if finish(path, recovered=True):
                recovered.append(path.name)
                log.warning("recovered the recording %s", path.name, extra=about("recording.recovered"))
    return recovered
