"""Decoding and delivery of one chunk while the next one is denoised."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep.modalities.video.cache import StreamCache
from fewstep.modalities.video.video_stream import (
    Chunk,
    Decoded,
    Deliver,
    Made,
    Undo,
    VideoStream,
    WindowState,
)

AHEAD = 2  # chunks made and not handed out: the one being decoded, and the one denoised meanwhile


class Waiting(NamedTuple):
    """A chunk that the stream has moved on from and that is not decoded yet."""

    made: Made
    window: WindowState
    seconds: float
    ready: torch.cuda.Event | None
    """On a CUDA device: passed once the latents are there."""


class OverlappedStream:
    """A ``VideoStream`` that is decoded by a thread of its own, on a CUDA device in a stream of its own.

    The frames are those of the stream by itself. As the next chunk is already made when one is handed out, a
    new prompt shows one chunk later.
    """

    def __init__(self, stream: VideoStream) -> None:
        self.serial = stream
        """What it overlaps."""
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")
        self._side = torch.cuda.Stream(stream.device) if stream.device.type == "cuda" else None
        self._start_over()

    @property
    def seed(self) -> int:
        return self.serial.seed

    @property
    def index(self) -> int:
        """Chunks handed out."""
        return self.serial.index - len(self._waiting)

    @property
    def cache(self) -> StreamCache:
        """That of the chunks made, which are more than those handed out."""
        return self.serial.cache

    def set_prompt(self, features: Float[Tensor, " text feature"], *, refresh: bool | None = None) -> Undo:
        """Steer the chunks not yet made towards another prompt, as ``VideoStream.set_prompt``."""
        return self.serial.set_prompt(features, refresh=refresh)

    def reset(self, seed: int) -> None:
        """Back to chunk 0 under ``seed``, with the present prompt and an empty cache."""
        self.serial.reset(seed)
        self._start_over()

    def begin_from(
        self, latents: Float[Tensor, " 1 latent_frame channel h w"]
    ) -> UInt8[np.ndarray, " frame height width 3"]:
        """As ``VideoStream.begin_from``."""
        frames = self.serial.begin_from(latents)
        self._start_over()
        return frames

    def step(self, deliver: Deliver | None = None) -> Chunk:
        """The next chunk, whose frames ``deliver`` gets on the decoding thread: what it does with them, such
        as encoding, no denoising waits for. When it raises, whether denoising, decoding or delivering, no
        chunk is lost: called again, it goes on from there.
        """
        if not self._waiting:
            self._advance()
        first = self._waiting[0]
        decoding = self._worker.submit(self._delivered, first, self._memory, deliver)
        try:
            if len(self._waiting) < AHEAD:
                self._advance()
        finally:
            wait([decoding])
        decoded = decoding.result()
        chunk = Chunk(
            index=self.index,
            frames=decoded.frames,
            latents=first.made.latents,
            seconds={"denoise": first.made.seconds, "decode": decoded.seconds, "cache": first.seconds},
            window=first.window,
        )
        self._memory = decoded.memory
        self._waiting.popleft()
        return chunk

    def _start_over(self) -> None:
        self._memory: Any = self.serial.memory
        self._waiting: deque[Waiting] = deque()

    def _advance(self) -> None:
        made = self.serial.make()
        window, seconds = self.serial.take(made)
        ready = None
        if self._side is not None:
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(self.serial.device))
        self._waiting.append(Waiting(made, window, seconds, ready))

    def _delivered(self, waiting: Waiting, memory: Any, deliver: Deliver | None) -> Decoded:
        decoded = self._decode(waiting, memory)
        if deliver is not None:
            deliver(decoded.frames)
        return decoded

    def _decode(self, waiting: Waiting, memory: Any) -> Decoded:
        if self._side is None or waiting.ready is None:
            return self.serial.decode(waiting.made.latents, memory)
        with torch.cuda.stream(self._side):
            self._side.wait_event(waiting.ready)
            # ends with the bytes on the host: what it read may be freed once it returns
            return self.serial.decode(waiting.made.latents, memory)
