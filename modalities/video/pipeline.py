"""A video model ready to stream: student, codec, prompts and their numbers, from one folder."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor

from fewstep.modalities.video.cache import CacheConfig, SinkMode, StreamCache
from fewstep.modalities.video.codec import STRIDE, VideoCodec
from fewstep.modalities.video.model_folder import load_codec, load_transformer
from fewstep.modalities.video.noise import chunk_noise
from fewstep.modalities.video.rollout import ChunkRollout, Finished
from fewstep.modalities.video.text import TextEncoder, check_prompt
from fewstep.modalities.video.transformer import VideoTransformer

PRESETS = "fewstep.modalities.video.presets"
PIPELINE = "pipeline.json"
PROMPTS = "prompts.safetensors"


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
    """

    def __init__(self, folder: Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        self.folder = folder
        self.card: Mapping[str, Any] = json.loads((folder / PIPELINE).read_text())
        self.device = torch.device(device)
        self.dtype = dtype or fast_dtype(self.device)
        self.student: VideoTransformer = (
            load_transformer(folder / "student").to(self.device, self.dtype).eval()
        )
        self.student.fuse_projections()
        self.codec: VideoCodec = load_codec(folder / "codec").to(self.device, self.dtype).eval()
        # torch's types lack this overload
        self.codec = self.codec.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._known = load_file(folder / PROMPTS) if (folder / PROMPTS).exists() else {}
        self._text = TextEncoder()

    @classmethod
    def load(cls, name: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> "VideoModel":
        """A bundled preset by name (``driving``), or a folder of the same format by its path."""
        with as_file(files(PRESETS)) as presets:
            bundled = presets / str(name)
            for folder in (Path(name), bundled):
                if (folder / PIPELINE).is_file():
                    return cls(folder, device=device, dtype=dtype)
            known = sorted(path.parent.name for path in presets.glob(f"*/{PIPELINE}"))
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
        return self.card["steering"]

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
        rollout = ChunkRollout(self.student, self.step_grids[steps], frozen=True)
        return VideoStream(
            rollout, self.codec, config, features, seed=seed, height=self.height, width=self.width
        )


class VideoStream:
    """An endless video, chunk by chunk.

    Noise is keyed by (seed, chunk, step), never drawn in sequence: pauses, viewers and other streams
    cannot change a pixel.
    """

    def __init__(
        self,
        rollout: ChunkRollout,
        codec: VideoCodec,
        config: CacheConfig,
        features: Float[Tensor, " text feature"],
        *,
        seed: int,
        height: int,
        width: int,
    ) -> None:
        self._rollout, self._codec, self._config = rollout, codec, config
        self._latent_size = (height // STRIDE, width // STRIDE)
        self.set_prompt(features)
        self.reset(seed)

    @torch.inference_mode()
    def set_prompt(self, features: Float[Tensor, " text feature"]) -> None:
        """Steer towards another prompt from the next chunk on; the past stays as it is."""
        network = self._rollout.network
        context = features.to(network.patch_embedding.weight.device)[None]
        self._prompt = network.text_keys_values(context)

    @torch.inference_mode()
    def reset(self, seed: int) -> None:
        """Back to chunk 0 under ``seed``, with the present prompt and an empty cache."""
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed} must lie in [0, 2^63)")
        height, width = self._latent_size
        self.seed, self.index = seed, 0
        self.cache = StreamCache(self._rollout.network, self._config, batch=1, height=height, width=width)
        self._memory = self._codec.memory(1, height, width)
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
