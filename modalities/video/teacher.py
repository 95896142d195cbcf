"""The bidirectional teacher that a student was distilled from: whole clips in many guided steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core.denoisers import Guided, NetworkDenoiser
from fewstep.core.samplers import euler
from fewstep.core.schedules import uniform_grid
from fewstep.modalities.video.codec import STRIDE
from fewstep.modalities.video.model_folder import load_transformer
from fewstep.modalities.video.noise import chunk_noise
from fewstep.modalities.video.pipeline import PIPELINE, PROMPTS, VideoModel, to_bytes
from fewstep.modalities.video.text import TextEncoder

TEACHER = "teacher"


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """How the teacher samples: its own number of steps, w, latent frames per clip, shift of its time grid."""

    num_steps: int = 50
    guidance_scale: int | float = 2.5
    clip_frames: int = 12
    shift: int | float = 1.0

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.clip_frames < 1 or self.shift <= 0:
            raise ValueError(f"{self}: num_steps and clip_frames must be at least 1, shift above 0")


def has_teacher(model: VideoModel) -> bool:
    """Whether a model comes with its teacher; released students do not."""
    return (model.folder / TEACHER).is_dir() and TEACHER in model.card


class Teacher:
    """Clips of a fixed length by Euler's method on the guided flow, decoded by the model's codec."""

    def __init__(
        self, model: VideoModel, settings: TeacherSettings, null_features: Float[Tensor, " text feature"]
    ) -> None:
        self.settings = settings
        network = load_transformer(model.folder / TEACHER).to(model.device, model.dtype).eval()
        network.fuse_projections()
        self._null = null_features.to(model.device)[None]
        self._denoiser = NetworkDenoiser(network)
        self._codec, self._device = model.codec, model.device
        rows, columns = model.height // STRIDE, model.width // STRIDE
        self._shape = (settings.clip_frames, network.config.channels, rows, columns)

    @classmethod
    def load(cls, model: VideoModel) -> "Teacher":
        """The teacher in a model's folder, with the settings of its ``pipeline.json``."""
        if not has_teacher(model):
            raise ValueError(
                f"{model.folder} has no {TEACHER} (its folder, and its entry in {PIPELINE}); add it"
            )
        prompts = model.folder / PROMPTS
        known = load_file(prompts) if prompts.exists() else {}
        null_features = known[""].float() if "" in known else TextEncoder()([""])[0]
        return cls(model, TeacherSettings(**model.card[TEACHER]), null_features)

    @property
    def pixel_frames(self) -> int:
        """Frames of a decoded clip."""
        return self.settings.clip_frames * self._codec.config.frames_per_latent

    @torch.inference_mode()
    def sample(
        self,
        features: Float[Tensor, " batch text feature"],
        *,
        seeds: Sequence[int],
        num_steps: int | None = None,
    ) -> Float[Tensor, " batch frame channel h w"]:
        """Latents of one clip per prompt and seed; ``num_steps`` defaults to the teacher's own."""
        settings = self.settings
        times = uniform_grid(num_steps or settings.num_steps, scale=float(settings.shift))
        noise = torch.stack([chunk_noise(seed, 0, 0, self._shape) for seed in seeds]).to(self._device)
        guided = Guided(
            self._denoiser, guidance_scale=float(settings.guidance_scale), null_condition=self._null
        )
        return euler(guided, noise, times, features.to(self._device))

    @torch.inference_mode()
    def decode(
        self, latents: Float[Tensor, " batch frame channel h w"]
    ) -> UInt8[np.ndarray, " batch pixel_frame height width 3"]:
        """Frames of whole clips."""
        return to_bytes(self._codec.decode(latents))
