"""H.264 for the live stream: Annex B, one closed group of pictures per chunk, and MP4 made from it.

A group that never crosses a chunk means that every viewer can start at any chunk and that a dropped frame
costs at most the rest of its chunk; no viewer ever has to ask the shared encoder for a key frame.
"""

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.video.frame import PictureType

ENCODER = "libx264"
MISSING = "this PyAV has no H.264 encoder (libx264): pip install --force-reinstall av"
OPTIONS = {
    "preset": "ultrafast",
    "tune": "zerolatency",
    "crf": "20",
    "profile": "baseline",
    "forced-idr": "1",
}
NEVER = 2**30
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
MP4_TICKS = 12_000


def available() -> bool:
    """Whether FFmpeg has the encoder here; some builds leave it out for its licence."""
    try:
        av.Codec(ENCODER, "w")
    except ValueError:
        return False
    return True


class H264Encoder:
    """Chunks of frames to Annex B pictures, parameter sets in front of each chunk's first one."""

    def __init__(self, *, fps: float, width: int, height: int) -> None:
        rate = Fraction(fps).limit_denominator(1000)
        self._context = av.CodecContext.create(ENCODER, "w")
        self._context.width = width + width % 2
        self._context.height = height + height % 2
        self._context.pix_fmt = "yuv420p"
        self._context.framerate = rate
        self._context.time_base = 1 / rate
        self._context.gop_size = NEVER
        self._context.thread_count = 1  # more threads on busy cores make the slowest frame ten times slower
        self._context.options = dict(OPTIONS)
        self._count = 0

    def encode(self, frames: np.ndarray) -> list[bytes]:
        """One picture per frame of uint8 `[N, H, W, 3]`; the first is a key picture."""
        pad = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
        pictures = []
        for number, pixels in enumerate(np.pad(frames, pad, mode="edge")):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, self._count = self._count, self._count + 1
            if number == 0:
                frame.pict_type = PictureType.I
            pictures.append(b"".join(bytes(packet) for packet in self._context.encode(frame)))
        return pictures


class _Sink(io.RawIOBase):
    """Collects what a muxer writes, in order."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        block = bytes(data)  # pyright: ignore[reportArgumentType]  # bytes-like, says the caller
        self.written += block
        return len(block)


class LiveMp4:
    """Annex B chunks to fragmented MP4 without end, for players that read a plain HTTP response."""

    def __init__(self, fps: float) -> None:
        self._period = 1 / Fraction(fps).limit_denominator(1000)
        self._sink = _Sink()
        self._container = av.open(self._sink, "w", format="mp4", options=dict(FRAGMENTED))
        self._stream: av.VideoStream | None = None
        self._count = 0

    def add(self, pictures: Sequence[bytes]) -> bytes:
        """The file's next bytes after a chunk that begins with a key picture. They lag one chunk behind."""
        with av.open(io.BytesIO(b"".join(pictures)), "r", format="h264") as reader:
            source = reader.streams.video[0]
            if self._stream is None:
                self._stream = self._container.add_stream_from_template(source)
                self._stream.time_base = Fraction(1, MP4_TICKS)
            for packet in reader.demux(source):
                if packet.size == 0:
                    continue
                packet.stream = self._stream
                packet.time_base = self._period
                packet.pts = packet.dts = self._count
                packet.duration = 1
                self._count += 1
                self._container.mux(packet)
        data = bytes(self._sink.written)
        self._sink.written.clear()
        return data
