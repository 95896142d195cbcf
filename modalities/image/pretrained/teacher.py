"""Image teachers from diffusers folders."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoisers import Condition, Denoiser, Guided
from fewstep.core.layouts import append_dims
from fewstep.core.paths import Path as NoisePath
from fewstep.core.paths import Prediction
from fewstep.modalities.image.pretrained.architectures import Architecture
from fewstep.modalities.image.pretrained.codec import LatentCodec
from fewstep.modalities.image.pretrained.guidance import NormKeepingGuidance, PredictingDenoiser
from fewstep.modalities.image.pretrained.schedule import NoiseSchedule
from fewstep.modalities.image.pretrained.text import PromptEncoder


class DiffusersTeacher(nn.Module):
    """The network of a diffusers pipeline as a denoiser of latents, with the pipeline's text and autoencoder.

    Only ``network`` is a part of the module: parameters, state and deep copies are the network's alone, and
    the text encoders and the autoencoder, both frozen, are shared by all copies. Nothing here stops
    gradients through ``x_t`` and the weights; freezing a teacher is the caller's business.

    ``fewstep.modalities.image.pretrained.load_teacher`` makes one.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        architecture: Architecture,
        schedule: NoiseSchedule,
        codec: LatentCodec,
        text: PromptEncoder | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.architecture = architecture
        self.schedule = schedule
        self.codec = codec
        self.text = text
        self._null_condition: dict[str, Tensor] | None = None

    @property
    def path(self) -> NoisePath:
        return self.schedule.path

    @property
    def prediction(self) -> Prediction:
        """What the network predicts."""
        return self.schedule.prediction

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def forward(
        self, x_t: Float[Tensor, " batch c h w"], t: Float[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, " batch c h w"]:
        """The clean latents ``x0_hat``; ``condition`` is what :meth:`encode_prompt` returned.

        Conditions with one row are repeated over the batch.
        """
        prediction = self.predict(x_t, t, condition)
        return self.path.to_x0(prediction, x_t, append_dims(t, x_t), self.prediction)

    def predict(
        self, x_t: Float[Tensor, " batch c h w"], t: Float[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, " batch c h w"]:
        """The network's own prediction, of the kind :attr:`prediction`, in the network's dtype."""
        patch = self.architecture.patch(self.network)
        if x_t.shape[-2] % patch or x_t.shape[-1] % patch:
            raise ValueError(
                f"x_t of {x_t.shape[-2]}x{x_t.shape[-1]} latents does not divide into patches of {patch}"
            )
        x = x_t.to(next(self.network.parameters()).dtype)
        timestep = self.schedule.timestep(t if t.dtype == torch.float64 else t.float())
        return self.architecture.predict(self.network, x, timestep.float(), self._rows(condition, x))

    def features(
        self, x_t: Float[Tensor, " batch c h w"], t: Float[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, " batch rows columns dim"]:
        """What the middle block computes (of a UNet the mid block, as in DMD2), channels last, for a
        discriminator's head.
        """
        return self.block_features(x_t, t, condition, blocks=[self.num_blocks // 2])[0]

    def block_features(
        self,
        x_t: Float[Tensor, " batch c h w"],
        t: Float[Tensor, " batch"],
        condition: Condition,
        *,
        blocks: Sequence[int],
    ) -> list[Float[Tensor, " batch rows columns dim"]]:
        """What several blocks compute, in one pass; of a block with two streams, that of the image.

        Args:
            blocks: indices below :attr:`num_blocks`; negative ones count from the end.
        """
        points = self.architecture.blocks(self.network)
        if not blocks or any(not -len(points) <= index < len(points) for index in blocks):
            raise ValueError(f"blocks={list(blocks)} must name blocks below {len(points)}")
        outputs: dict[int, Any] = {}
        handles = [
            points[index].register_forward_hook(
                lambda module, args, output, index=index: outputs.__setitem__(index, output)
            )
            for index in set(blocks)
        ]
        try:
            self.predict(x_t, t, condition)
        finally:
            for handle in handles:
                handle.remove()
        maps = [self.architecture.feature_map(self.network, outputs[index], x_t) for index in blocks]
        return [one.movedim(1, -1) for one in maps]

    @property
    def num_blocks(self) -> int:
        """Blocks for :meth:`block_features`: a UNet's down, mid and up blocks, all of a transformer's."""
        return len(self.architecture.blocks(self.network))

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The condition for these prompts: a dict of tensors with one row each, on the network's device."""
        return self._text_encoder()(list(prompts), self.device)

    @property
    def null_condition(self) -> dict[str, Tensor]:
        """What guidance steers away from, with one row: the pipeline's own negative of an empty prompt."""
        if self._null_condition is None:
            self._null_condition = self._text_encoder().null(self.device)
        return self._null_condition

    def guided(
        self,
        guidance_scale: float,
        *,
        interval: tuple[float, float] | None = None,
        through: PredictingDenoiser | None = None,
    ) -> Denoiser:
        """This teacher with guidance as its pipeline does it; w = 1 is off.

        Args:
            interval: times (low, high) where w applies; None is everywhere.
            through: what is called in this teacher's place, such as a view of its network.
        """
        kind = NormKeepingGuidance if self.architecture.keeps_norm else Guided
        return kind(
            through or self,
            guidance_scale=guidance_scale,
            null_condition=self.null_condition,
            interval=interval,
        )

    def encode(self, pixels: Float[Tensor, " batch 3 height width"]) -> Float[Tensor, " batch c h w"]:
        """Latents of images in [-1, 1]."""
        return self.codec.to(self.device).encode(pixels)

    def decode(self, latents: Float[Tensor, " batch c h w"]) -> Float[Tensor, " batch 3 height width"]:
        """Images in [-1, 1] of latents."""
        return self.codec.to(self.device).decode(latents)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Channels, rows and columns of the latents of an image with so many pixels."""
        side = self.architecture.pixels_per_latent * self.architecture.patch(self.network)
        if height % side or width % side or min(height, width) < side:
            raise ValueError(f"height={height}, width={width} must be multiples of {side} pixels")
        scale = self.architecture.pixels_per_latent
        return self.architecture.latent_channels(self.network), height // scale, width // scale

    def shift(self, latents: Float[Tensor, " batch c h w"]) -> float:
        """The time shift the pipeline uses at this size; scale of ``fewstep.core.schedules.shift``."""
        return self.schedule.shift(self._tokens(latents))

    def times(self, num_steps: int, latents: Float[Tensor, " batch c h w"]) -> list[float]:
        """Descending times for ``fewstep.core.samplers``: the grid of the pipeline's first-order solver."""
        return self.schedule.times(num_steps, self._tokens(latents), from_one=self.architecture.grid_from_one)

    def copy(self) -> "DiffusersTeacher":
        """A student or critic to start from: the network copied, text encoders and autoencoder shared."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "DiffusersTeacher":
        twin = DiffusersTeacher(
            copy.deepcopy(self.network, memo),
            architecture=self.architecture,
            schedule=self.schedule,
            codec=self.codec,
            text=self.text,
        )
        twin.training = self.training
        memo[id(self)] = twin
        return twin

    def save_student(self, folder: str | Path, *, network: nn.Module | None = None) -> Path:
        """Write the network as diffusers does, to ``folder/unet`` or ``folder/transformer``; returns that.

        Load it with ``load_teacher(teacher, network=folder)``, or with diffusers' ``from_pretrained``.

        Args:
            network: another one of the same class in this one's place, such as one with merged adapters.
        """
        target = Path(folder) / self.architecture.network
        saved: Any = network or self.network
        saved.save_pretrained(target)
        return target

    def _text_encoder(self) -> PromptEncoder:
        if self.text is None:
            raise ValueError("text_encoders=False left the text encoders out; load the teacher with them")
        return self.text

    def _rows(self, condition: Condition, x: Tensor) -> dict[str, Tensor]:
        """The condition on the device and in the dtype of ``x``, with a row per sample."""
        names = self.architecture.places
        if not isinstance(condition, Mapping) or any(name not in condition for name in names):
            found = list(condition) if isinstance(condition, Mapping) else type(condition).__name__
            raise ValueError(
                f"condition={found} must be a dict with {', '.join(names)}: what encode_prompt returns"
            )
        rows = {}
        for name in names:
            value: Tensor = condition[name]
            if len(value) not in (1, len(x)):
                raise ValueError(f"condition[{name!r}] has {len(value)} rows for {len(x)} samples")
            value = value.to(x) if value.is_floating_point() else value.to(x.device)
            rows[name] = value.expand(len(x), *value.shape[1:])
        return rows

    def _tokens(self, latents: Tensor) -> int:
        patch = self.architecture.patch(self.network)
        return (latents.shape[-2] // patch) * (latents.shape[-1] // patch)
