"""Captioned videos: a folder of video files with sidecars, read as clips and served to a trainer."""

import json
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

CODEC_QUALITY = "12"  # x264 constant rate factor: visually lossless at 96 pixels
KEYFRAME_INTERVAL = "48"


def write_clip(
    folder: Path, name: str, frames: UInt8[np.ndarray, " frame height width 3"], record: dict[str, Any], *, fps: float
) -> None:
    """Writes `name`.json, then `name`.mp4, each complete or not at all, so a reader never sees half a clip."""
    folder.mkdir(parents=True, exist_ok=True)
    sidecar = folder / f".{name}.json.part"
    sidecar.write_text(json.dumps({"fps": fps, **record}), encoding="utf-8")
    os.replace(sidecar, folder / f"{name}.json")
    video = folder / f".{name}.mp4.part"
    write_video(video, frames, fps=fps)
    os.replace(video, folder / f"{name}.mp4")


def write_video(path: Path, frames: Iterable[UInt8[np.ndarray, " height width 3"]], *, fps: float) -> None:
    """Writes RGB frames as H.264 with full colour resolution."""
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = None
        for frame in frames:
            if stream is None:
                options = {"crf": CODEC_QUALITY, "preset": "veryfast", "g": KEYFRAME_INTERVAL, "threads": "1"}
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv444p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        if stream is None:
            raise ValueError(f"frames for {path} are empty; pass at least one frame")
        container.mux(stream.encode())
