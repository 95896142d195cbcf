"""A video model ready to stream: student, codec, prompts and their numbers, from one folder."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep.core.checkpoints import why_no_model
from fewstep.core.devices import usable_device
from fewstep.core.precision import fast_dtype
from fewstep.modalities.video.acceleration import Acceleration
from fewstep.modalities.video.cache import CacheConfig, SinkMode
from fewstep.modalities.video.codec import STRIDE, VideoCodec
from fewstep.modalities.video.overlapped import AHEAD, OverlappedStream
from fewstep.modalities.video.parts import PROMPTS, Parts, in_fastest_layout, read_parts
from fewstep.modalities.video.pipeline_card import PIPELINE
from fewstep.modalities.video.quantization import quantize
from fewstep.modalities.video.rollout import ChunkRollout
from fewstep.modalities.video.static_passes import StaticPasses, cuda_graph
from fewstep.modalities.video.streaming_codec import StreamingCodec
from fewstep.modalities.video.taehv import TAEHV
from fewstep.modalities.video.text import check_prompt
from fewstep.modalities.video.transformer import VideoTransformer
from fewstep.modalities.video.video_stream import Chunk, VideoStream, WindowState, to_bytes
from fewstep.modalities.video.wan_vae import WanVAE

__all__ = [
    "PIPELINE",
    "PROMPTS",
    "Chunk",
    "VideoModel",
    "VideoStream",
    "WindowState",
    "to_bytes",
]

PRESETS = "fewstep.modalities.video.presets"


class VideoModel:
    """A distilled student with its codec and text encoder.

    The folder holds ``pipeline.json`` (frame rate, size, cache, step grids, default prompt, steering),
    the model folders ``student`` and ``codec``, optionally ``teacher``, and ``prompts.safetensors``:
    features of the prompts the page offers, so that a stream starts before the text encoder is loaded.
    Released folders of Wan 2.1's students are read as they are.

    Args:
        parts: None reads them from the folder.
        acceleration: how it runs; the default changes no number.

    Raises:
        ValueError: there is no such device, or ``acceleration`` cannot run on it, with the reason.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        parts: Parts | None = None,
        acceleration: Acceleration = Acceleration(),  # noqa: B008 - frozen
    ) -> None:
        parts = read_parts(folder) if parts is None else parts
        self.folder = folder
        self.card: Mapping[str, Any] = parts.card
        self.device = usable_device(device)
        self.dtype = dtype or fast_dtype(self.device)
        student = parts.student.to(self.device, self.dtype).eval()
        self.student, self.acceleration = accelerated(student, acceleration), acceleration
        codec = parts.codec.to(self.device, self.dtype).eval()
        in_fastest_layout(codec)
        self.codec: StreamingCodec = codec
        self._known, self._text = parts.known, parts.text
        if acceleration.compiled:
            codec.decoder.compile(dynamic=False)
            self.warm_decoder()

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        acceleration: Acceleration = Acceleration(),  # noqa: B008 - frozen
    ) -> "VideoModel":
        """A bundled preset by name (``driving``), a folder of the same format by its path, or a released
        folder of a student of Wan 2.1.
        """
        with as_file(files(PRESETS)) as presets:
            bundled = presets / str(name)
            for folder in (Path(name), bundled):
                if (folder / PIPELINE).is_file():
                    return cls(folder, device=device, dtype=dtype, acceleration=acceleration)
            known = [path.parent.name for path in presets.glob(f"*/{PIPELINE}")]
        if Path(name).is_dir():
            from fewstep.modalities.video.released.folder import looks_released, open_released

            if looks_released(Path(name)):
                parts = open_released(Path(name))
                return cls(Path(name), device=device, dtype=dtype, parts=parts, acceleration=acceleration)
        raise ValueError(why_no_model(name, "video", needed=PIPELINE, known=known))

    def with_acceleration(self, acceleration: Acceleration) -> "VideoModel":
        """The same model run otherwise, with a student of its own and everything else in common.

        Raises:
            ValueError: ``acceleration`` cannot run on this device, or this model's weights are already
                quantised.
        """
        if self.acceleration.quantization != "none":
            raise ValueError(
                f"the weights are already quantised ({self.acceleration.quantization}); load the model anew"
            )
        other = copy.copy(self)
        other.student = accelerated(copy.deepcopy(self.student), acceleration)
        other.acceleration = acceleration
        if acceleration.compiled or self.acceleration.compiled:
            codec = copy.deepcopy(self.codec)  # without what is compiled
            assert isinstance(codec, VideoCodec | WanVAE | TAEHV)  # as loaded
            other.codec = codec
            if acceleration.compiled:
                codec.decoder.compile(dynamic=False)
                other.warm_decoder()
        return other

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
    def chunks_ahead(self) -> int:
        """Chunks that a stream has made beyond those handed out: a new prompt shows as many later."""
        return AHEAD - 1 if self.acceleration.overlapped_decoding else 0

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

    @torch.inference_mode()
    def warm_decoder(self) -> None:
        """Decode three chunks of nothing: the first, one after it, and one after what is compiled.

        What compiles lets the device finish its work, which must not happen while passes are recorded, so it
        is not left to the first chunks of a stream.
        """
        rows, columns = self.height // STRIDE, self.width // STRIDE
        shape = (1, self.cache_config.chunk, self.codec.config.channels, rows, columns)
        latents, memory = torch.zeros(shape, device=self.device), self.codec.memory(1, rows, columns)
        for _ in range(3):
            memory = self.codec.decode_chunk(latents, memory)[1]

    def warm_passes(self) -> None:
        """Make the chunks that fill a window and one more, for nobody: with each length of the past layers
        are compiled anew, which a viewer would wait for in the middle of a stream.
        """
        config = self.cache_config
        stream = self.stream(self.encode_prompt(self.default_prompt))
        for _ in range(-(-config.window // config.chunk) + 1):
            stream.step()

    def stream(
        self,
        features: Float[Tensor, " text feature"],
        *,
        seed: int = 0,
        steps: int | None = None,
        sink_mode: SinkMode | None = None,
        decay: float | None = None,
    ) -> VideoStream | OverlappedStream:
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
        stream = VideoStream(
            self.rollout(steps),
            self.codec,
            config,
            features,
            seed=seed,
            height=self.height,
            width=self.width,
            refresh=bool(self.card.get("refresh_on_switch", False)),
        )
        return OverlappedStream(stream) if self.acceleration.overlapped_decoding else stream

    def rollout(self, steps: int) -> ChunkRollout:
        """How chunks are made in so many steps."""
        how = self.acceleration
        record = cuda_graph if how.cuda_graphs else None
        return ChunkRollout(
            self.student,
            self.step_grids[steps],
            context_time=self.context_time,
            frozen=True,
            merged=how.merges_on(self.device.type),
            cache_from=how.cache_from,
            passes=StaticPasses(self.student, record=record) if how.static_steps else None,
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


def accelerated(student: VideoTransformer, how: Acceleration) -> VideoTransformer:
    """The student, changed in place to run so; its weights are for good what ``how`` makes of them."""
    if reason := how.why_not(str(student.patch_embedding.weight.device)):
        raise ValueError(reason)
    if how.fused_projections and how.quantization == "none":
        student.fuse_projections()
    quantize(student, how.quantization)
    kernels = None
    if how.fused_kernels:
        from fewstep.modalities.video.triton_kernels import TritonKernels  # needs Triton

        kernels = TritonKernels()
    student.use_kernels(kernels)
    if how.compiled:
        student.compile_blocks()
    return student
