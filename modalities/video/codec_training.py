"""Training of the video autoencoder."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from lightning.pytorch import LightningModule
from torch import Tensor

from fewstep.core.training.run_folder import export_record
from fewstep.core.training.schedules import warmup_cosine
from fewstep.modalities.video.codec import CodecConfig, VideoCodec
from fewstep.modalities.video.model_folder import save_codec

WEIGHTS = {"pixel": 1.0, "square": 4.0, "edge": 0.5, "motion": 0.25}


def pixel_losses(
    decoded: Float[Tensor, " batch frame 3 height width"],
    pixels: Float[Tensor, " batch frame 3 height width"],
) -> dict[str, Tensor]:
    """Mean absolute errors of the pixels, of their differences to the next pixel and to the next frame;
    mean square error.

    The square is what makes small objects worth drawing.
    """
    error = decoded - pixels
    return {
        "pixel": error.abs().mean(),
        "square": error.square().mean(),
        "edge": error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean(),
        "motion": error.diff(dim=1).abs().mean(),
    }


class CodecTraining(LightningModule):
    """Reconstruction through a bottleneck of normalised, noised latents.

    Args:
        codec: sizes of the autoencoder.
        learning_rate: peak of a warm-up and cosine schedule over the trainer's ``max_steps``.
        latent_noise: standard deviation of the noise added to the unit-variance latents, so that the
            decoder forgives a generator's small errors.
        weights: of the terms of ``pixel_losses``.
    """

    def __init__(
        self,
        codec: CodecConfig,
        learning_rate: float = 2e-3,
        latent_noise: float = 0.1,
        weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        # torch's types lack this overload
        self.codec = VideoCodec(codec).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.learning_rate = learning_rate
        self.latent_noise = latent_noise
        self.weights = WEIGHTS if weights is None else weights
        if self.weights.keys() != WEIGHTS.keys():
            raise ValueError(f"weights={weights} must name {', '.join(WEIGHTS)}; 0 switches a term off")

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        pixels = to_unit_range(batch["frames"])
        latents = self.codec.encode(pixels)
        decoded = self.codec.decode(latents + self.latent_noise * torch.randn_like(latents))
        terms = pixel_losses(decoded.float(), pixels)
        self.log_dict({f"loss/{name}": value.detach() for name, value in terms.items()})
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        pixels = to_unit_range(batch["frames"])
        error = (self.codec.decode(self.codec.encode(pixels)).float().clamp(-1, 1) - pixels).square().mean()
        self.log("val/psnr", 10 * torch.log10(4.0 / error), batch_size=len(pixels))

    def on_train_end(self) -> None:
        training, metrics = export_record(self.trainer)
        save_codec(
            Path(self.trainer.default_root_dir) / "model", self.codec, training=training, metrics=metrics
        )

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.codec.parameters(), self.learning_rate, betas=(0.9, 0.95), weight_decay=1e-3
        )
        return warmup_cosine(optimizer, int(self.trainer.estimated_stepping_batches))


def to_unit_range(
    frames: UInt8[Tensor, " batch frame 3 height width"],
) -> Float[Tensor, " batch frame 3 height width"]:
    """Bytes to floats in [-1, 1]."""
    return frames.float() / 127.5 - 1.0
