"""Frames to MP4: a plain file for scripts, and a recorder for the live stream that a crash cannot spoil."""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import numpy as np
from av.error import FFmpegError

from fewstep.streaming import h264
from fewstep.streaming.journal import Journal, read_journal, summarise

# x264's macroblock tree weighs small frames anew at each call: the same frames, other bytes.
OFFLINE: dict[str, object] = {"crf": "16", "preset": "medium", "mbtree": "0"}
LIVE: dict[str, object] = {"crf": "16", "preset": "veryfast", "tune": "zerolatency"}
MAX_BYTES = 4 * 2**30
MIN_FREE_BYTES = 2**30
NAME = re.compile(r"rec_\d{8}T\d{6}Z_[0-9a-f]{8}\.mp4")
# flush_packets: without it PyAV holds a short recording back until the end, and a crash would lose all of it.
FRAGMENTED = {
    "movflags": "frag_keyframe+empty_moov+default_base_moof+use_metadata_tags",
    "flush_packets": "1",
}
PLAIN = {"movflags": "faststart+use_metadata_tags"}


class Mp4Writer:
    """H.264 in MP4, frame by frame. `metadata` ends up under the key `fewstep` as JSON."""

    def __init__(
        self,
        path: Path,
        *,
        fps: float,
        width: int,
        height: int,
        metadata: Mapping[str, Any],
        fragmented: bool = False,
    ) -> None:
        if not h264.available():
            raise ImportError(h264.MISSING)
        self._container = av.open(
            str(path), "w", format="mp4", options=dict(FRAGMENTED if fragmented else PLAIN)
        )
        self._container.metadata.update(_tags(metadata))
        self._stream = self._container.add_stream(h264.ENCODER, rate=Fraction(fps).limit_denominator(1000))
        self._stream.width = width + width % 2
        self._stream.height = height + height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.gop_size = max(
            1, int(fps)
        )  # a fragment ends where a group does: a crash loses less than 1 s
        self._stream.options = dict(LIVE if fragmented else OFFLINE)
        self._stream.codec_context.thread_count = 1
        try:
            self._container.start_encoding()
        except OSError as error:  # here PyAV opens the file, and does not say which
            raise OSError(error.errno, error.strerror, str(path)) from error

    def write(self, frames: np.ndarray) -> None:
        """Append uint8 `[N, H, W, 3]`; odd sizes are padded by repeating the edge."""
        pad = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
        for pixels in np.pad(frames, pad, mode="edge"):
            self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


class Recorder:
    """Writes `NAME.part.mp4`, readable to its last second even after a crash, and its journal beside it.

    A thread of its own encodes a chunk while the next one is made; generation waits for it after that, so no
    frame is ever lost. What the disk refuses ends the recording and never the stream: `full` then says why.
    """

    def __init__(self, path: Path, *, fps: float, width: int, height: int, begin: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.part = part_of(path)
        self.frames = 0
        self.full: str | None = None
        with contextlib.ExitStack() as opened:
            self.journal = opened.enter_context(contextlib.closing(Journal(journal_of(path))))
            self.journal.add(begin)
            self._writer = Mp4Writer(
                self.part, fps=fps, width=width, height=height, metadata=begin["metadata"], fragmented=True
            )
            opened.pop_all()  # both stay open, unless the video cannot be
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="record")
        self._under_way: Future[None] | None = None

    @property
    def bytes(self) -> int:
        """Size of the file so far."""
        return self.part.stat().st_size if self.part.exists() else 0

    def write(self, frames: np.ndarray) -> None:
        """Append a chunk, unless there is no room, once the one before it is in the file."""
        self._wait()
        if self.full is not None:
            return
        self.full = self._reason_to_stop()
        if self.full is None:
            self.frames += len(frames)
            self._under_way = self._thread.submit(self._write, frames)

    def _reason_to_stop(self) -> str | None:
        try:
            if shutil.disk_usage(self.part.parent).free < MIN_FREE_BYTES:
                return "disk_full"
            return "too_long" if self.bytes > MAX_BYTES else None
        except OSError as error:  # the folder is gone, or its disk
            return f"disk_error: {error.strerror}"

    def _write(self, frames: np.ndarray) -> None:
        try:
            self._writer.write(frames)
        except (OSError, FFmpegError) as error:
            self.full = "disk_full" if error.errno == errno.ENOSPC else f"disk_error: {error.strerror}"
            self.frames -= len(frames)

    def _wait(self) -> None:
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def close(self) -> None:
        """Write what the encoder still holds; a disk that takes no more keeps what it has."""
        self._thread.shutdown()  # which waits
        for end in (self.journal.close, self._writer.close):
            with contextlib.suppress(OSError, FFmpegError):
                end()


def new_name() -> str:
    """A file name that sorts by time and cannot be guessed into another's way."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"rec_{stamp}_{secrets.token_hex(4)}.mp4"


def part_of(path: Path) -> Path:
    """The unfinished video of the recording that will be `path`."""
    return path.with_suffix(".part.mp4")


def journal_of(path: Path) -> Path:
    """The journal of the recording that will be `path`."""
    return path.with_suffix(".journal.jsonl")


def finish(path: Path, *, recovered: bool = False) -> int:
    """Turn part and journal into `path` and its `.json`, at once or not at all; the number of frames.

    A part without a whole frame is removed. Works on what a crash left just as on what was closed in order.
    """
    part, journal = part_of(path), journal_of(path)
    frames = count_frames(part)
    if frames > 0:
        metadata = summarise(read_journal(journal), frames=frames)
        metadata |= {"recovered": True} if recovered else {}
        final = path.with_suffix(".final.mp4")
        try:
            _remux(part, final, metadata)
            with final.open("rb") as file:
                os.fsync(file.fileno())
            path.with_suffix(".json").write_text(json.dumps(metadata, indent=2) + "\n")
        except BaseException:
            final.unlink(missing_ok=True)  # half a copy on a disk that is full already helps nobody
            raise
        final.replace(path)
    part.unlink(missing_ok=True)
    journal.unlink(missing_ok=True)
    return frames


def count_frames(path: Path) -> int:
    """Pictures in a file that may end in the middle of one; 0 for one that is no video yet."""
    try:
        with av.open(str(path)) as container:
            return sum(1 for _ in _whole_packets(container))
    except (OSError, FFmpegError, IndexError):
        return 0


def _whole_packets(container: av.container.InputContainer) -> Iterator[av.Packet]:
    """Packets up to where the file was cut off."""
    with contextlib.suppress(FFmpegError):
        for packet in container.demux(container.streams.video[0]):
            if packet.dts is not None:
                yield packet


def read_metadata(path: Path) -> dict[str, Any]:
    """What a file made here says about itself: model, seed, steps, sink and cues.

    Raises:
        ValueError: it is no video, or of another program.
    """
    try:
        with av.open(str(path)) as container:
            return json.loads(container.metadata["fewstep"])
    except (FFmpegError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a video made here: it does not say how ({error})") from error


def _tags(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {"title": str(metadata.get("title", "fewstep")), "fewstep": json.dumps(metadata)}


def _remux(source: Path, target: Path, metadata: Mapping[str, Any]) -> None:
    with (
        av.open(str(source)) as reader,
        av.open(str(target), "w", format="mp4", options=dict(PLAIN)) as writer,
    ):
        writer.metadata.update(_tags(metadata))
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        for packet in _whole_packets(reader):
            packet.stream = copy
            writer.mux(packet)
