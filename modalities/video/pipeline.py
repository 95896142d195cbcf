"""A video model ready to stream: student, codec, prompts and their numbers, from one folder."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep.modalities.video.blocks import KeysValues
from fewstep.modalities.video.cache import CacheConfig, SinkMode, StreamCache
from fewstep.modalities.video.codec import STRIDE
from fewstep.modalities.video.noise import chunk_noise
from fewstep.modalities.video.parts import PIPELINE, PROMPTS, Parts, in_fastest_layout, read_parts
from fewstep.modalities.video.rollout import ChunkRollout, Finished
from fewstep.modalities.video.streaming_codec import StreamingCodec
from fewstep.modalities.video.text import check_prompt

__all__ = [
    "PIPELINE",
    "PROMPTS",
    "Chunk",
    "VideoModel",
    "VideoStream",
    "WindowState",
    "fast_dtype",
    "to_bytes",
]

PRESETS = "fewstep.modalities.video.presets"


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


class VideoModel:
    """A distilled student with its codec and text encoder.

    The folder holds ``pipeline.json`` (frame rate, size, cache, step grids, default prompt, steering),
    the model folders ``student`` and ``codec``, optionally ``teacher``, and ``prompts.safetensors``:
    features of the prompts the page offers, so that a stream starts before the text encoder is loaded.
    Released folders of Wan 2.1's students are read as they are.

    Args:
        parts: None reads them from the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        parts: Parts | None = None,
    ) -> None:
        parts = read_parts(folder) if parts is None else parts
        self.folder = folder
        self.card: Mapping[str, Any] = parts.card
        self.device = torch.device(device)
        self.dtype = dtype or fast_dtype(self.device)
        self.student = parts.student.to(self.device, self.dtype).eval()
        self.student.fuse_projections()
        codec = parts.codec.to(self.device, self.dtype).eval()
        in_fastest_layout(codec)
        self.codec: StreamingCodec = codec
        self._known, self._text = parts.known, parts.text

    @classmethod
    def load(cls, name: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> "VideoModel":
        """A bundled preset by name (``driving``), a folder of the same format by its path, or a released
        folder of a student of Wan 2.1.
        """
        with as_file(files(PRESETS)) as presets:
            bundled = presets / str(name)
            for folder in (Path(name), bundled):
                if (folder / PIPELINE).is_file():
                    return cls(folder, device=device, dtype=dtype)
            known = sorted(path.parent.name for path in presets.glob(f"*/{PIPELINE}"))
        if Path(name).is_dir():
            from fewstep.modalities.video.released.folder import looks_released, open_released

            if looks_released(Path(name)):
                return cls(Path(name), device=device, dtype=dtype, parts=open_released(Path(name)))
        raise ValueError(
            f"no video model {str(name)!r}: give a folder with {PIPELINE}, "
            f"or one of {', '.join(known) or '(none)'}"
        )

    @property
    def fps(self) -> float:
        """Playback rate in frames per second."""
        return float(self.card["fps"])

    @property
    def height(self) -> int:
        return int(self.card["height"])

    @property
    def width(self) -> int:
        return int(self.card["width"])

    @property
    def cache_config(self) -> CacheConfig:
        """The cache the student was distilled with."""
        return CacheConfig(**self.card["cache"])

    @property
    def chunk_frames(self) -> int:
        """Pixel frames per chunk."""
        return self.cache_config.chunk * self.codec.config.frames_per_latent

    @property
    def context_time(self) -> float:
        """At which a finished chunk enters the cache; 0 is clean."""
        return float(self.card.get("context_time", 0.0))

    @property
    def step_grids(self) -> dict[int, tuple[float, ...]]:
        """Times of the denoising steps, by their number."""
        return {int(steps): tuple(times) for steps, times in self.card["step_grids"].items()}

    @property
    def steps_available(self) -> tuple[int, ...]:
        return tuple(sorted(self.step_grids))

    @property
    def default_steps(self) -> int:
        return int(self.card["default_steps"])

    @property
    def default_prompt(self) -> str:
        return str(self.card["default_prompt"])

    @property
    def steering(self) -> Mapping[str, Any]:
        """Axes of attributes with their keys, and the prompt of each combination of values."""
        return self.card.get("steering", {})

    def encode_prompt(self, text: str) -> Float[Tensor, " text feature"]:
        """Token features of a prompt; at once for the folder's own prompts, else by the text encoder."""
        prompt = check_prompt(text)
        if prompt in self._known:
            return self._known[prompt].float()
        return self._text([prompt])[0]

    def warm_text(self) -> None:
        """Load the text encoder, so that the first prompt of one's own does not wait seconds for it."""
        self._text([self.default_prompt])

    def stream(
        self,
        features: Float[Tensor, " text feature"],
        *,
        seed: int = 0,
        steps: int | None = None,
        sink_mode: SinkMode | None = None,
        decay: float | None = None,
    ) -> "VideoStream":
        """An endless rollout; defaults are those the student was distilled with."""
        steps = self.default_steps if steps is None else steps
        if steps not in self.step_grids:
            raise ValueError(
                f"steps={steps}: this model was distilled to "
                f"{', '.join(map(str, self.steps_available))} steps"
            )
        config = self.cache_config
        config = replace(
            config, sink_mode=sink_mode or config.sink_mode, decay=config.decay if decay is None else decay
        )
        rollout = ChunkRollout(
            self.student, self.step_grids[steps], context_time=self.context_time, frozen=True
        )
        return VideoStream(
            rollout,
            self.codec,
            config,
            features,
            seed=seed,
            height=self.height,
            width=self.width,
            refresh=bool(self.card.get("refresh_on_switch", False)),
        )

    @torch.inference_mode()
    def encode_start(
        self, frames: UInt8[np.ndarray, " frame height width 3"]
    ) -> Float[Tensor, " 1 latent_frame channel h w"]:
        """Latents of the last whole chunks of a video of the model's size, for ``VideoStream.begin_from``.

        A picture, or a video shorter than one chunk, stands still at its end until the chunk is full.
        """
        chunk = self.cache_config.chunk
        chunks = 1
        while self.codec.pixel_frames(chunk * (chunks + 1)) <= len(frames):
            chunks += 1
        count = self.codec.pixel_frames(chunk * chunks)
        kept = frames[-count:]
        kept = np.concatenate([kept, np.repeat(kept[-1:], count - len(kept), axis=0)])
        pixels = torch.from_numpy(kept).permute(0, 3, 1, 2)[None].to(self.device, self.dtype)
        return self.codec.encode(pixels / 127.5 - 1.0)


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
        self._prompt = self._text(features)
        self.reset(seed)

    def set_prompt(self, features: Float[Tensor, " text feature"], *, refresh: bool | None = None) -> None:
        """Steer towards another prompt from the next chunk on; the past stays as it is.

        With ``refresh`` (None is the model's own way) the frames in the window are read once more under the
        new prompt, so that they no longer ask for the old one; the sink stays (LongLive, arXiv 2509.22622).
        """
        self._prompt = self._text(features)
        if self._refreshes if refresh is None else refresh:
            self._refresh()

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
        pixels, memory = self._codec.decode_chunk(latents, self._memory)
        for part in latents.split(chunk, dim=1):
            self._rollout.commit(self.cache, self._prompt, part)
        self._memory, self._recent = memory, self._kept(latents)
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
        network = self._rollout.network
        return network.text_keys_values(features.to(network.patch_embedding.weight.device)[None])

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
        self._memory = self._codec.memory(1, height, width)
        channels = self._rollout.network.config.channels
        device = self._rollout.network.patch_embedding.weight.device
        self._recent = torch.zeros(1, 0, channels, height, width, device=device)
        self._last: Finished | None = None  # enters the cache together with the next chunk's first step

    @torch.inference_mode()
    def step(self) -> Chunk:
        """The next chunk. When it raises, the stream is as it was."""
        started = time.perf_counter()
        latents, entry = self._rollout.denoise_after(self.cache, self._last, self._prompt, self._noise)
        if entry is None:
            self._last = None  # it is in the cache, and enters it only once
        denoised = time.perf_counter()
        pixels, memory = self._codec.decode_chunk(latents, self._memory)
        frames = to_bytes(pixels)[0]
        decoded = time.perf_counter()
        if entry is not None:
            self.cache.commit(*entry)
        self._last = Finished(latents, self._prompt)
        committed = time.perf_counter()
        seconds = {"denoise": denoised - started, "decode": decoded - denoised, "cache": committed - decoded}
        chunk = Chunk(
            index=self.index, frames=frames, latents=latents, seconds=seconds, window=self._window()
        )
        self._memory, self.index = memory, self.index + 1
        self._recent = self._kept(latents)
        return chunk

    def _window(self) -> WindowState:
        return WindowState(
            sink_frames=self.cache.sink_ids,
            window_frames=self.cache.window_ids,
            evicted=list(self.cache.evicted),
            decay=self._config.decay if self._config.sink_mode == "ema" else 1.0,
            drift=self.cache.sink_drift,
        )

    def _noise(self, step: int) -> Float[Tensor, " 1 frame channel h w"]:
        network = self._rollout.network
        shape = (1, self._config.chunk, network.config.channels, *self._latent_size)
        return chunk_noise(self.seed, self.index, step, shape).to(network.patch_embedding.weight.device)


def to_bytes(
    pixels: Float[Tensor, " batch frame 3 height width"],
) -> UInt8[np.ndarray, " batch frame height width 3"]:
    """Pixels in [-1, 1] to bytes with channels last."""
    scaled = pixels.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return scaled.permute(0, 1, 3, 4, 2).contiguous().cpu().numpy()


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32. By capability, so that runs
    agree on one machine.
    """
    if device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
