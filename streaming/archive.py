"""The folder of recordings: at most one is being written, the finished ones can be fetched by name."""

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from fewstep.streaming.engine import VideoModel
from fewstep.streaming.protocol import BadMessage
from fewstep.streaming.recording import NAME, Recorder

log = logging.getLogger(__name__)

LISTED = 50


class Archive:
    """Starts and stops recordings. `recorder` is what the chunk loop hands to the engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recorder: Recorder | None = None
        self._reason: str | None = None

    @property
    def active(self) -> bool:
        return self.recorder is not None

    @property
    def full(self) -> str | None:
        """Why the recording can take no more frames, or None."""
        return None if self.recorder is None else self.recorder.full

    def start(self, model: VideoModel, metadata: Mapping[str, Any]) -> None:
        """Record from the next chunk on."""
        if self.recorder is not None:
            raise BadMessage("already_recording", "record.start: a recording is running", ref="record.start")
        try:
            self.recorder = Recorder(
                self.folder, fps=model.fps, width=model.width, height=model.height, metadata=metadata
            )
        except OSError as error:
            raise BadMessage("disk_error", f"record.start: {error}", ref="record.start") from None
        self._reason = None

    async def stop(self, engine: Executor, metadata: Mapping[str, Any]) -> None:
        """Finish the file; the engine's thread closes it, so a chunk under way is still written."""
        recorder, self.recorder = self.recorder, None
        if recorder is None:
            return
        self._reason = recorder.full
        await asyncio.get_running_loop().run_in_executor(engine, recorder.close)
        if recorder.frames == 0:
            recorder.part.unlink(missing_ok=True)
            self._reason = "empty"
            return
        await asyncio.to_thread(recorder.finish, metadata)
        log.info("recorded %d frames to %s", recorder.frames, recorder.path)

    def status(self) -> dict[str, Any]:
        """The `record` message."""
        recorder = self.recorder
        return {
            "type": "record",
            "state": "idle" if recorder is None else "recording",
            "name": None if recorder is None else recorder.path.name,
            "frames": 0 if recorder is None else recorder.frames,
            "bytes": 0 if recorder is None else recorder.bytes,
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
