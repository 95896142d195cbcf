"""An endless video, chunk by chunk, over a cache of its past."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep.modalities.video.blocks import KeysValues
from fewstep.modalities.video.cache import CacheConfig, StreamCache
from fewstep.modalities.video.codec import STRIDE
from fewstep.modalities.video.noise import chunk_noise, sent
from fewstep.modalities.video.rollout import ChunkRollout, Entry, Finished
from fewstep.modalities.video.streaming_codec import StreamingCodec

Undo = Callable[[], None]
"""Takes back the last change."""
Deliver = Callable[[UInt8[np.ndarray, " frame height width 3"]], None]
"""Takes the frames of a chunk."""


@dataclass(frozen=True, kw_only=True)
class WindowState:
    """What the cache held when a chunk was made, in absolute latent frame numbers."""

    sink_frames: list[int]
    window_frames: list[int]
    evicted: list[int]
    decay: float
    drift: float
    """1 - cosine between the sink before and after the chunk before this one came in."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Pixel frames ``[N, H, W, 3]`` of one chunk, and the seconds that each stage took."""

    index: int
    frames: UInt8[np.ndarray, " frame height width 3"]
    latents: Float[Tensor, " 1 latent_frame channel h w"]
    seconds: dict[str, float]
    window: WindowState


class Made(NamedTuple):
    """A chunk that is denoised and not yet part of the past, and the seconds that took."""

    latents: Float[Tensor, " 1 latent_frame channel h w"]
    entry: Entry | None
    seconds: float


class Decoded(NamedTuple):
    """Frames of a chunk, what the decoder keeps for the next one, and the seconds it took."""

    frames: UInt8[np.ndarray, " frame height width 3"]
    memory: Any
    seconds: float


class VideoStream:
    """An endless video, chunk by chunk.

    Noise is keyed by (seed, chunk, step), never drawn in sequence: pauses, viewers and other streams
    cannot change a pixel.
    """

    def __init__(
        self,
        rollout: ChunkRollout,
        codec: StreamingCodec,
        config: CacheConfig,
        features: Float[Tensor, " text feature"],
        *,
        seed: int,
        height: int,
        width: int,
        refresh: bool = False,
    ) -> None:
        self._rollout, self._codec, self._config = rollout, codec, config
        self._latent_size = (height // STRIDE, width // STRIDE)
        self._refreshes = refresh
        self.device = rollout.network.patch_embedding.weight.device
        self._prompt = self._text(features)
        self.reset(seed)

    def set_prompt(self, features: Float[Tensor, " text feature"], *, refresh: bool | None = None) -> Undo:
        """Steer towards another prompt from the next chunk on; the past stays as it is.

        With ``refresh`` (None is the model's own way) the frames in the window are read once more under the
        new prompt, so that they no longer ask for the old one; the sink stays (LongLive, arXiv 2509.22622).
        When it raises, the stream is as it was.

        Returns:
            What takes it back, to the last bit, until the next chunk is made; afterwards only the prompt. It
            holds a copy of the cache if the window was read again.
        """
        prompt = self._text(features)
        refresh = self._refreshes if refresh is None else refresh
        undo = self._prompt_undo(refresh)
        self._prompt = prompt
        if refresh:
            try:
                self._refresh()
            except BaseException:
                undo()
                raise
        return undo

    @torch.inference_mode()
    def _prompt_undo(self, refresh: bool) -> Undo:
        prompt, last, cache, index = self._prompt, self._last, self.cache, self.index
        restore = cache.snapshot() if refresh else None

        @torch.inference_mode()
        def undo() -> None:
            self._prompt = prompt
            if restore is not None and self.cache is cache and self.index == index:
                restore()
                self._last = last

        return undo

    @torch.inference_mode()
    def begin_from(
        self, latents: Float[Tensor, " 1 latent_frame channel h w"]
    ) -> UInt8[np.ndarray, " frame height width 3"]:
        """Continue a video whose latents (whole chunks) these are: they enter the cache as if the stream had
        made them. Returns them decoded. For a stream without a chunk yet; ``reset`` forgets them.

        Raises:
            ValueError: the stream has begun, or the latents are no whole chunks of its size.
        """
        chunk = self._config.chunk
        expected = (1, chunk, self._rollout.network.config.channels, *self._latent_size)
        if self.index or self.cache.frames_seen:
            raise ValueError("the stream has begun; reset it before it can begin from other frames")
        if latents.shape[1] % chunk or (1, chunk, *latents.shape[2:]) != expected:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)} are no chunks of this stream, {expected} each; "
                "make them with encode_start"
            )
        pixels, memory = self._codec.decode_chunk(latents, self.memory)
        for part in latents.split(chunk, dim=1):
            self._rollout.commit(self.cache, self._prompt, part)
        self.memory, self._recent = memory, self._kept(latents)
        return to_bytes(pixels)[0]

    @torch.inference_mode()
    def _refresh(self) -> None:
        """The window anew under the present prompt, chunk by chunk, as they were made."""
        pending = 0 if self._last is None else self._last.x0.shape[1]
        count, total = self.cache.forget_ring(), self._recent.shape[1]
        window = self._recent[:, total - pending - count : total - pending]
        first, chunk = count % self._config.chunk, self._config.chunk  # the oldest chunk may be cut
        for part in window.split([first, *[chunk] * (count // chunk)], dim=1):
            if part.shape[1]:
                self._rollout.commit(self.cache, self._prompt, part)
        if self._last is not None:
            self._last = Finished(self._last.x0, self._prompt)

    @torch.inference_mode()
    def _text(self, features: Float[Tensor, " text feature"]) -> list[KeysValues]:
        return self._rollout.network.text_keys_values(features.to(self.device)[None])

    def _kept(self, latents: Tensor) -> Tensor:
        """The latents of the frames in the ring and of the chunk that is to enter it, with these."""
        most = self._config.ring_frames + self._config.chunk
        return torch.cat([self._recent, latents], dim=1)[:, -most:]

    @torch.inference_mode()
    def reset(self, seed: int) -> None:
        """Back to chunk 0 under ``seed``, with the present prompt and an empty cache."""
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed} must lie in [0, 2^63)")
        height, width = self._latent_size
        self.seed, self.index = seed, 0
        self.cache = StreamCache(self._rollout.network, self._config, batch=1, height=height, width=width)
        self.memory = self._codec.memory(1, height, width)
        """Of the decoder, after the chunks that ``step`` has made."""
        channels = self._rollout.network.config.channels
        self._recent = torch.zeros(1, 0, channels, height, width, device=self.device)
        self._last: Finished | None = None  # enters the cache together with the next chunk's first step

    @torch.inference_mode()
    def step(self, deliver: Deliver | None = None) -> Chunk:
        """The next chunk, whose frames are given to ``deliver``. When it raises, or that does, the stream is
        as it was.
        """
        made = self.make()
        decoded = self.decode(made.latents, self.memory)
        if deliver is not None:
            deliver(decoded.frames)
        window, seconds = self.take(made)
        self.memory = decoded.memory
        return Chunk(
            index=self.index - 1,
            frames=decoded.frames,
            latents=made.latents,
            seconds={"denoise": made.seconds, "decode": decoded.seconds, "cache": seconds},
            window=window,
        )

    @torch.inference_mode()
    def make(self) -> Made:
        """Latents of the next chunk; only ``take`` moves the stream on to the one after it."""
        started, seen = time.perf_counter(), self.cache.frames_seen
        try:
            latents, entry = self._rollout.denoise_after(self.cache, self._last, self._prompt, self._noise)
        finally:
            if self.cache.frames_seen != seen:
                self._last = None  # it is in the cache, and enters it only once
        return Made(latents, entry, time.perf_counter() - started)

    @torch.inference_mode()
    def take(self, made: Made) -> tuple[WindowState, float]:
        """Move on: the chunk is part of the past. Returns the cache's state, and the seconds it took. When it
        raises for want of memory, the stream has not moved.
        """
        started = time.perf_counter()
        recent = self._kept(made.latents)
        last = self._rollout.unfinished(made.latents, self._prompt)
        if made.entry is not None:
            self.cache.commit(*made.entry)
        self._recent, self._last, self.index = recent, last, self.index + 1
        seconds = time.perf_counter() - started
        return self._window(), seconds

    @torch.inference_mode()
    def decode(self, latents: Float[Tensor, " 1 frame channel h w"], memory: Any) -> Decoded:
        """Pixels of a chunk after those that left ``memory``; changes nothing."""
        started = time.perf_counter()
        pixels, memory = self._codec.decode_chunk(latents, memory)
        frames = to_bytes(pixels)[0]
        return Decoded(frames, memory, time.perf_counter() - started)

    def _window(self) -> WindowState:
        return WindowState(
            sink_frames=self.cache.sink_ids,
            window_frames=self.cache.window_ids,
            evicted=list(self.cache.evicted),
            decay=self._config.decay if self._config.sink_mode == "ema" else 1.0,
            drift=self.cache.sink_drift,
        )

    def _noise(self, step: int) -> Float[Tensor, " 1 frame channel h w"]:
        shape = (1, self._config.chunk, self._rollout.network.config.channels, *self._latent_size)
        return sent(chunk_noise(self.seed, self.index, step, shape), self.device)


def to_bytes(
    pixels: Float[Tensor, " batch frame 3 height width"],
) -> UInt8[np.ndarray, " batch frame height width 3"]:
    """Pixels in [-1, 1] to bytes with channels last."""
    scaled = pixels.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return _on_host(scaled.permute(0, 1, 3, 4, 2).contiguous()).numpy()


def _on_host(data: Tensor) -> Tensor:
    """From a CUDA device into pinned memory, at the full speed of the bus."""
    if data.device.type != "cuda":
        return data.cpu()
    host = torch.empty(data.shape, dtype=data.dtype, pin_memory=True)
    host.copy_(data, non_blocking=True)
    torch.cuda.current_stream(data.device).synchronize()
    return host
