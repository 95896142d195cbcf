"""Pixels to JPEG, once per frame for all viewers, and the frame that goes out."""

import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

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
