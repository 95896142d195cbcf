"""Video files: decoded to frames of one size, kept decoded on disk, and written."""

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from av.error import FFmpegError
from jaxtyping import Int64, UInt8
from torch.nn.functional import interpolate

Decoder = Literal["auto", "decord", "av"]
Decoded = tuple[UInt8[np.ndarray, " frame height width 3"], float]

DECODE_FRAMES = 8  # scaled at once, in float32: 800 MB of the frames of a 4K video
QUARTER = 90  # degrees
CODEC_QUALITY = "12"  # x264 constant rate factor: visually lossless at 96 pixels
KEYFRAME_INTERVAL = "48"


def write_video(path: Path, frames: Iterable[UInt8[np.ndarray, " height width 3"]], *, fps: float) -> None:
    """Writes RGB frames as H.264 with full colour resolution."""
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = None
        for frame in frames:
            if stream is None:
                options = {"crf": CODEC_QUALITY, "preset": "veryfast", "g": KEYFRAME_INTERVAL}
                # x264's macroblock tree weighs small frames anew at each call: the same frames, other bytes.
                options |= {"threads": "1", "mbtree": "0"}
                rate = Fraction(fps).limit_denominator(1001)
                stream = container.add_stream("libx264", rate=rate, options=options)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv444p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        if stream is None:
            raise ValueError(f"frames for {path} are empty; pass at least one frame")
        container.mux(stream.encode())


def decode_video(
    video: Path,
    *,
    height: int,
    width: int,
    fps: float | None,
    decoder: Decoder,
    last: int | None = None,
) -> Decoded:
    """All frames of a video, scaled and centre-cropped, at `fps` if given; and the frame rate of the file.

    With `last` only so many from its end, in memory that does not grow with the rest. `auto` is decord where
    it is installed, and PyAV for what decord cannot read, such as some narrow frames.
    """
    if decoder == "auto" and _has_decord():
        with suppress(ValueError):
            return decode_video(video, height=height, width=width, fps=fps, decoder="decord", last=last)
    source_fps, batches = _decord_batches(video) if decoder == "decord" else _av_batches(video)
    scale = 1.0 if fps is None else fps / source_fps
    parts = deque(maxlen=None if last is None else math.ceil((last / scale + 1) / DECODE_FRAMES) + 1)
    count = 0
    for batch in batches:
        parts.append(_fit(batch, height, width))
        count += len(batch)
    if not parts:
        raise ValueError(f"{video} has no frames; remove it")
    frames = np.concatenate(parts)
    if fps is not None:
        kept = resampled_indices(count, scale)[slice(None if last is None else -last, None)]
        frames = frames[kept - (count - len(frames))]
    return frames if last is None else frames[-last:], source_fps


def decode_once(
    videos: list[Path], *, height: int, width: int, fps: float | None, decoder: Decoder, cache: Path
) -> list[Decoded]:
    """As `decode_video` for each video, through one memory-mapped file that is written on the first call.

    The file is named by a hash of the videos' names, sizes and times and of the options, so a changed folder
    is decoded anew. Its table of contents is renamed into place last and marks it complete.
    """
    states = [(video.name, video.stat().st_size, video.stat().st_mtime_ns) for video in videos]
    key = hashlib.sha256(json.dumps([states, height, width, fps, decoder]).encode()).hexdigest()[:16]
    raw, contents = cache / f"frames-{key}.raw", cache / f"frames-{key}.json"
    if not contents.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = cache / f"frames-{key}.{os.getpid()}.part"
        table = []
        with part.open("wb") as file:
            for video in videos:
                frames, source_fps = decode_video(video, height=height, width=width, fps=fps, decoder=decoder)
                frames.tofile(file)
                table.append([len(frames), source_fps])
        os.replace(part, raw)
        part.write_text(json.dumps(table), encoding="utf-8")
        os.replace(part, contents)
    table = json.loads(contents.read_text(encoding="utf-8"))
    # Copy on write: torch refuses to wrap read-only memory without a warning.
    frames = np.memmap(raw, np.uint8, "c", shape=(sum(count for count, _ in table), height, width, 3))
    ends = np.cumsum([count for count, _ in table])
    return [(frames[end - count : end], fps) for end, (count, fps) in zip(ends, table, strict=True)]


def resampled_indices(count: int, scale: float) -> Int64[np.ndarray, " kept"]:
    """Source indices of the frames kept at `scale` times the source's frame rate."""
    kept = max(1, round(count * scale))
    return np.minimum((np.arange(kept) / scale + 1e-6).astype(np.int64), count - 1)


def _fit(
    frames: UInt8[np.ndarray, " frame _ _ 3"], height: int, width: int
) -> UInt8[np.ndarray, " frame _ _ 3"]:
    """Scales to cover `height` x `width`, antialiased, and cuts out the centre."""
    scale = max(height / frames.shape[1], width / frames.shape[2])
    if frames.shape[1:3] != (height, width):
        covering = (max(height, round(frames.shape[1] * scale)), max(width, round(frames.shape[2] * scale)))
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
        pixels = interpolate(pixels, covering, mode="bilinear", antialias=True)
        top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
        pixels = pixels[:, :, top : top + height, left : left + width]
        frames = np.ascontiguousarray(pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
    return frames


def _has_decord() -> bool:
    try:
        import decord  # noqa: F401  asked for its presence only
    except (ImportError, OSError):  # OSError: installed without the libraries it needs
        return False
    return True


def _decord_batches(video: Path) -> tuple[float, Iterator[UInt8[np.ndarray, " frame height width 3"]]]:
    import decord

    @contextmanager
    def reading() -> Iterator[None]:
        try:
            yield
        except (RuntimeError, decord.DECORDError) as error:
            raise ValueError(f"{video} cannot be decoded; re-encode it or remove it") from error

    def batches() -> Iterator[UInt8[np.ndarray, " frame height width 3"]]:
        for start in range(0, len(reader), DECODE_FRAMES):
            with reading():
                batch = reader.get_batch(range(start, min(start + DECODE_FRAMES, len(reader)))).asnumpy()
            yield batch

    with reading():
        reader = decord.VideoReader(str(video), num_threads=1)
    return float(reader.get_avg_fps()), batches()


def _av_batches(video: Path) -> tuple[float, Iterator[UInt8[np.ndarray, " frame height width 3"]]]:
    unreadable = f"{video} cannot be decoded; re-encode it or remove it"
    try:
        with av.open(str(video)) as container:
            rate = container.streams.video[0].average_rate
    except (FFmpegError, IndexError) as error:
        raise ValueError(unreadable) from error
    if rate is None:
        raise ValueError(f"{video} states no frame rate; re-encode it")

    def batches() -> Iterator[UInt8[np.ndarray, " frame height width 3"]]:
        frames: list[np.ndarray] = []
        try:
            with av.open(str(video)) as container:
                for frame in container.decode(video=0):
                    frames.append(_upright(frame))
                    if len(frames) == DECODE_FRAMES:
                        yield np.stack(frames)
                        frames = []
        except FFmpegError as error:
            raise ValueError(unreadable) from error
        if frames:
            yield np.stack(frames)

    return float(rate), batches()


def _upright(frame: av.VideoFrame) -> UInt8[np.ndarray, " height width 3"]:
    """As players show it: phones store what they film in one orientation, and beside it how to turn that."""
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / QUARTER))
    return np.ascontiguousarray(turned)
