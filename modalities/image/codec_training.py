"""Training of the image autoencoder."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from fewstep.core.training.run_folder import export_record
from fewstep.core.training.schedules import warmup_cosine
from fewstep.modalities.image.codec import ImageCodec, ImageCodecConfig
from fewstep.modalities.image.model_folder import load_codec, save_codec


class ImageCodecTraining(LightningModule):
    """Reconstruction of ``pixels`` ``[B, 3, H, W]`` through a bottleneck of normalised, noised latents.

    The loss is the mean absolute error, ``square`` times the squared one, and ``edge`` times the absolute
    error of the differences of neighbouring pixels.

    Args:
        codec: sizes of the autoencoder.
        learning_rate: peak of a warm-up and cosine schedule over the trainer's ``max_steps``.
        latent_noise: standard deviation of the noise added to the unit-variance latents, so that the
            decoder forgives a generator's small errors.
        square: weight of the squared error.
        edge: weight of the error of edges.
        initial: model folder to start from, which brings its own sizes.
        decoder_only: leave the encoder, and so all latents, as they are.
    """

    def __init__(
        self,
        codec: ImageCodecConfig | None = None,
        learning_rate: float = 2e-3,
        latent_noise: float = 0.05,
        square: float = 4.0,
        edge: float = 0.5,
        initial: str | None = None,
        decoder_only: bool = False,
    ) -> None:
        super().__init__()
        if (codec is None) == (initial is None):
            raise ValueError("give either `codec` (sizes) or `initial` (a model folder to start from)")
        network = ImageCodec(codec) if codec is not None else load_codec(Path(str(initial)))
        # torch's types lack this overload
        self.codec = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.decoder_only = decoder_only
        self.learning_rate = learning_rate
        self.latent_noise = latent_noise
        self.square, self.edge = square, edge

    def train(self, mode: bool = True) -> "ImageCodecTraining":
        super().train(mode)
        if self.decoder_only:
            self.codec.latent_norm.eval()
        return self

    def on_train_start(self) -> None:
        self.train()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        with torch.set_grad_enabled(not self.decoder_only):
            latents = self.codec.encode(batch["pixels"])
        decoded = self.codec.decode(latents + self.latent_noise * torch.randn_like(latents))
        error = decoded.float() - batch["pixels"]
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        loss = error.abs().mean() + self.square * error.square().mean() + self.edge * edges
        self.log("loss/reconstruction", loss.detach())
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        pixels = batch["pixels"]
        error = (self.codec.decode(self.codec.encode(pixels)).float().clamp(-1, 1) - pixels).square().mean()
        self.log("val/psnr", 10 * torch.log10(4.0 / error), batch_size=len(pixels))

    def on_train_end(self) -> None:
        training, metrics = export_record(self.trainer)
        folder = Path(self.trainer.default_root_dir) / "model"
        save_codec(folder, self.codec, training=training, metrics=metrics)

    def configure_optimizers(self) -> Any:
        trained = self.codec.decoder if self.decoder_only else self.codec
        optimizer = torch.optim.AdamW(
            trained.parameters(), self.learning_rate, betas=(0.9, 0.95), weight_decay=1e-3
        )
        return warmup_cosine(optimizer, int(self.trainer.estimated_stepping_batches))
