"""Flow matching on latent videos: the bidirectional teacher, and the causal initialisation of its student."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor

from fewstep.core.paths import LinearPath
from fewstep.core.training.ema import EMA
from fewstep.core.training.run_folder import export_record
from fewstep.core.training.schedules import warmup_cosine
from fewstep.modalities.video.masks import teacher_forcing
from fewstep.modalities.video.model_folder import load_transformer, save_transformer
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer

PATH = LinearPath()
UNIFORM_SHARE = 0.1  # of the times; logit-normal draws alone leave the ends of the path untrained
VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.98)


class VideoFlowTraining(LightningModule):
    """Velocity regression under the linear path (Lipman et al., 2023), for a bidirectional or a chunk-
    causal network.

    Batches hold ``latents`` ``[B, F, C, h, w]`` and ``features`` ``[B, F, L, D]``, the caption of each
    frame; ``null_features`` of the data module replaces the captions of a share of the clips.

    Args:
        transformer: sizes; ignored where ``initial`` names a model folder, which brings its own.
        initial: model folder to start from.
        chunk: None trains a bidirectional network. A number trains a causal one by teacher forcing:
            chunks of that many frames, each at its own noise level, see the clean chunks before them.
        learning_rate: peak of a warm-up and cosine schedule over the trainer's ``max_steps``.
        condition_dropout: share of clips whose captions are replaced by the empty prompt.
        time_mean: of the logit-normal distribution of training times.
        time_std: likewise.
        ema_decay: of the averaged weights that are exported.
    """

    def __init__(
        self,
        transformer: TransformerConfig | None = None,
        initial: str | None = None,
        chunk: int | None = None,
        learning_rate: float = 1e-3,
        condition_dropout: float = 0.1,
        time_mean: float = 0.3,
        time_std: float = 1.2,
        ema_decay: float = 0.998,
    ) -> None:
        super().__init__()
        if initial is not None:
            self.network = load_transformer(Path(initial))
        elif transformer is not None:
            self.network = VideoTransformer(transformer)
        else:
            raise ValueError("give `transformer` (sizes) or `initial` (a model folder to start from)")
        self.ema = EMA(self.network, decay=ema_decay)
        self.chunk = chunk
        self.learning_rate = learning_rate
        self.condition_dropout = condition_dropout
        self.time_mean, self.time_std = time_mean, time_std

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        latents, features = batch["latents"], batch["features"]
        dropped = torch.rand(len(latents), device=self.device) < self.condition_dropout
        features = torch.where(
            dropped[:, None, None, None], batch["null_features"].to(features.dtype), features
        )
        t = self._times(*latents.shape[:2])
        loss = self._velocity_error(latents, features, t, torch.randn_like(latents)).mean()
        self.log("loss/velocity", loss.detach())
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        latents = batch["latents"]
        generator = torch.Generator(self.device).manual_seed(batch_idx)
        eps = torch.randn(latents.shape, generator=generator, device=self.device)
        with self.ema.swapped(self.network):
            for time in VALIDATION_TIMES:
                t = torch.full(latents.shape[:2], time, device=self.device)
                error = self._velocity_error(latents, batch["features"], t, eps).mean()
                self.log(f"val/velocity_{time}", error, batch_size=len(latents))

    def _velocity_error(
        self, x0: Tensor, features: Tensor, t: Tensor, eps: Tensor
    ) -> Float[Tensor, " batch frame"]:
        x_t = PATH.add_noise(x0, eps, t[..., None, None, None])
        if self.chunk is None:
            velocity = self.network(x_t, t, features)
        else:
            mask = teacher_forcing(x0.shape[1], chunk=self.chunk).to(self.device)
            clips, times = torch.cat([x0, x_t], dim=1), torch.cat([torch.zeros_like(t), t], dim=1)
            both = self.network(
                clips, times, torch.cat([features, features], dim=1), frame_mask=mask, copies=2
            )
            velocity = both[:, x0.shape[1] :]
        return (velocity.float() - (eps - x0)).square().mean(dim=(2, 3, 4))

    def _times(self, batch: int, frames: int) -> Float[Tensor, " batch frame"]:
        """One time per clip, or per chunk; logit-normal with a share of uniform draws."""
        chunk = self.chunk or frames
        groups = -(-frames // chunk)
        normal = torch.randn(batch, groups, device=self.device) * self.time_std + self.time_mean
        uniform = torch.rand(batch, groups, device=self.device)
        chosen = torch.rand(batch, groups, device=self.device) < UNIFORM_SHARE
        times = torch.where(chosen, uniform, normal.sigmoid())
        return times.repeat_interleave(chunk, dim=1)[:, :frames]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.network)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.network.parameters(), self.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
        )
        return warmup_cosine(optimizer, int(self.trainer.estimated_stepping_batches))

    def on_train_end(self) -> None:
        training, metrics = export_record(self.trainer)
        with self.ema.swapped(self.network):
            save_transformer(
                Path(self.trainer.default_root_dir) / "model",
                self.network,
                training=training,
                metrics=metrics,
            )
