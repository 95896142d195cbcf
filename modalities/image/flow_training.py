"""Flow matching on latent images: the teacher."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from fewstep.core.denoisers import NetworkDenoiser
from fewstep.core.objectives.flow_matching import denoising_error
from fewstep.core.training.ema import EMA
from fewstep.core.training.run_folder import export_record
from fewstep.core.training.schedules import warmup_cosine
from fewstep.modalities.image.model_folder import load_codec, save_transformer
from fewstep.modalities.image.network import ImageTransformer
from fewstep.modalities.video.transformer import TransformerConfig

UNIFORM_SHARE = 0.1  # of the times; logit-normal draws alone leave the ends of the path untrained
LOWEST_TIME = 1e-3  # at t = 0 a velocity cannot be told from x_t
VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.98)


class ImageFlowTraining(LightningModule):
    """Velocity regression under the linear path (Lipman et al., 2023) on latents of captioned pictures.

    Batches hold ``pixels`` ``[B, 3, H, W]``, ``features`` ``[B, L, D]`` and ``null_features`` likewise.

    Args:
        codec: model folder of the autoencoder.
        transformer: sizes of the network.
        learning_rate: peak of a warm-up and cosine schedule over the trainer's ``max_steps``.
        condition_dropout: share of pictures whose captions are replaced by the empty prompt.
        time_mean: of the logit-normal distribution of training times.
        time_std: likewise.
        ema_decay: of the averaged weights that are exported.
    """

    def __init__(
        self,
        codec: str,
        transformer: TransformerConfig,
        learning_rate: float = 1e-3,
        condition_dropout: float = 0.1,
        time_mean: float = 0.3,
        time_std: float = 1.2,
        ema_decay: float = 0.998,
    ) -> None:
        super().__init__()
        self.codec = load_codec(Path(codec)).requires_grad_(False)
        self.denoiser = NetworkDenoiser(ImageTransformer(transformer))
        self.ema = EMA(self.denoiser.network, decay=ema_decay)
        self.learning_rate = learning_rate
        self.condition_dropout = condition_dropout
        self.time_mean, self.time_std = time_mean, time_std

    def train(self, mode: bool = True) -> "ImageFlowTraining":
        super().train(mode)
        self.codec.eval()  # its batch norm holds the latents' statistics
        return self

    def on_train_start(self) -> None:
        self.codec.eval()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        x0 = self._latents(batch)
        features = batch["features"]
        dropped = torch.rand(len(x0), device=self.device) < self.condition_dropout
        features = torch.where(dropped[:, None, None], batch["null_features"], features)
        normal = torch.randn(len(x0), device=self.device) * self.time_std + self.time_mean
        uniform = torch.rand(len(x0), device=self.device)
        chosen = torch.rand(len(x0), device=self.device) < UNIFORM_SHARE
        t = torch.where(chosen, uniform, normal.sigmoid()).clamp(min=LOWEST_TIME)
        loss = self._velocity_error(x0, torch.randn_like(x0), t, features).mean()
        self.log("loss/velocity", loss.detach())
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        x0 = self._latents(batch)
        generator = torch.Generator(self.device).manual_seed(batch_idx)
        eps = torch.randn(x0.shape, generator=generator, device=self.device)
        with self.ema.swapped(self.denoiser.network):
            for time in VALIDATION_TIMES:
                t = torch.full((len(x0),), time, device=self.device)
                error = self._velocity_error(x0, eps, t, batch["features"]).mean()
                self.log(f"val/velocity_{time}", error, batch_size=len(x0))

    @torch.no_grad()
    def _latents(self, batch: dict[str, Tensor]) -> Tensor:
        return self.codec.encode(batch["pixels"]).float()

    def _velocity_error(self, x0: Tensor, eps: Tensor, t: Tensor, features: Tensor) -> Tensor:
        error = denoising_error(self.denoiser, x0, eps, t, features)
        return (error / t[:, None, None, None]).square().mean(dim=(1, 2, 3))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.denoiser.network)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.denoiser.parameters(), self.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
        )
        return warmup_cosine(optimizer, int(self.trainer.estimated_stepping_batches))

    def on_train_end(self) -> None:
        training, metrics = export_record(self.trainer)
        network = self.denoiser.network
        assert isinstance(network, ImageTransformer)
        with self.ema.swapped(network):
            folder = Path(self.trainer.default_root_dir) / "model"
            save_transformer(folder, network, training=training, metrics=metrics)
