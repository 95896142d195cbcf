"""Pixels to JPEG and H.264, once per frame for all viewers, and the frame that goes out."""

import io
import time
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from fewstep.streaming.h264 import H264Encoder

JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedFrame:
    """One frame as it goes over the wire, less the send time that each viewer's header adds."""

    seq: int
    chunk: int
    revision: int
    flags: int
    width: int
    height: int
    fps: float
    pts_us: int
    payload: bytes
    h264: bytes | None = None
    """The same frame as Annex B, while somebody asks for it; a key picture where a chunk begins."""

    def alone(self) -> "EncodedFrame":
        """The frame without its H.264 picture, which needs others before it."""
        return replace(self, h264=None)


def encode_jpeg(frame: np.ndarray, *, quality: int = JPEG_QUALITY) -> bytes:
    """JPEG bytes of a uint8 `[H, W, 3]` frame. Full chroma: at 96 pixels halved chroma shows as smear."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


class ChunkEncoding:
    """A chunk's frames as viewers get them; called with them, on whichever thread has them first.

    Args:
        h264: the session's encoder, where somebody wants H.264 too.
    """

    def __init__(self, h264: H264Encoder | None) -> None:
        self.encoder = h264
        self.jpeg: list[bytes] = []
        self.h264: list[bytes] | None = None
        self.seconds = 0.0

    def __call__(self, frames: np.ndarray) -> None:
        started = time.perf_counter()
        self.jpeg = [encode_jpeg(frame) for frame in frames]
        if self.encoder is not None:
            self.h264 = self.encoder.encode(frames)
        self.seconds = time.perf_counter() - started
