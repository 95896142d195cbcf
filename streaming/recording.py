"""Frames to MP4: a plain file for scripts, and a crash-safe recorder for the live stream."""

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

OFFLINE: dict[str, object] = {"crf": "16", "preset": "medium"}
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
        self._container = av.open(
            str(path), "w", format="mp4", options=dict(FRAGMENTED if fragmented else PLAIN)
        )
        self._container.metadata.update(_tags(metadata))
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        self._stream.width = width + width % 2
        self._stream.height = height + height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.gop_size = max(1, round(fps))
        self._stream.options = dict(LIVE if fragmented else OFFLINE)
        self._stream.codec_context.thread_count = 1
        self._container.start_encoding()

    def write(self, frames: np.ndarray) -> None:
        """Append uint8 `[N, H, W, 3]`; odd sizes are padded by repeating the edge."""
        pad = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
        for pixels in np.pad(frames, pad, mode="edge"):
            self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


class Recorder:
    """Writes `NAME.part.mp4`, readable to its last second even after a crash; `finish` makes `NAME.mp4`.

    Called on the engine's thread, so generation waits for the file and no frame is ever lost.
    """

    def __init__(
        self, folder: Path, *, fps: float, width: int, height: int, metadata: Mapping[str, Any]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self.path = folder / f"rec_{stamp}_{secrets.token_hex(4)}.mp4"
        self.part = self.path.with_suffix(".part.mp4")
        self.frames = 0
        self.full: str | None = None
        self._writer = Mp4Writer(
            self.part, fps=fps, width=width, height=height, metadata=metadata, fragmented=True
        )

    @property
    def bytes(self) -> int:
        """Size of the file so far."""
        return self.part.stat().st_size if self.part.exists() else 0

    def write(self, frames: np.ndarray) -> None:
        """Append a chunk, unless there is no room: then `full` says why."""
        if shutil.disk_usage(self.part.parent).free < MIN_FREE_BYTES:
            self.full = "disk_full"
        elif self.bytes > MAX_BYTES:
            self.full = "too_long"
        if self.full is None:
            self._writer.write(frames)
            self.frames += len(frames)

    def close(self) -> None:
        """Write what the encoder still holds."""
        self._writer.close()

    def finish(self, metadata: Mapping[str, Any]) -> Path:
        """Turn the closed part into the final file with its final metadata, at once or not at all."""
        final = self.path.with_suffix(".final.mp4")
        _remux(self.part, final, metadata)
        with final.open("rb") as file:
            os.fsync(file.fileno())
        self.path.with_suffix(".json").write_text(json.dumps(metadata, indent=2) + "\n")
        final.replace(self.path)
        self.part.unlink()
        return self.path


def read_metadata(path: Path) -> dict[str, Any]:
    """What a file made here says about itself: model, seed, steps, sink and cues."""
    with av.open(str(path)) as container:
        return json.loads(container.metadata["fewstep"])


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
        for packet in reader.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                writer.mux(packet)
