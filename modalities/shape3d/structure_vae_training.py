"""Training of the autoencoder of active voxels."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from fewstep.core.training.run_folder import export_record
from fewstep.core.training.schedules import warmup_cosine
from fewstep.modalities.shape3d.data.shapes import Batch
from fewstep.modalities.shape3d.losses import dice_loss, grid_iou, kl_loss, sampled
from fewstep.modalities.shape3d.model_folder import save_network
from fewstep.modalities.shape3d.networks.structure_vae import (
    StructureDecoder,
    StructureDecoderConfig,
    StructureEncoder,
    StructureEncoderConfig,
)


class StructureVAETraining(LightningModule):
    """Dice of the occupancy and a light pull of the posterior to a Gaussian, as TRELLIS trains it.

    Batches hold ``occupancy`` ``[B, 1, R, R, R]``. With `turned` half of the objects are mirrored left to
    right and all of a batch turned by a multiple of 90 degrees around the vertical: the autoencoder has to
    know shapes, not their orientation.

    Args:
        encoder: sizes.
        decoder: sizes.
        learning_rate: peak of a warm-up and cosine schedule over the trainer's ``max_steps``.
        kl: weight of the divergence.
        turned: whether objects are mirrored and turned.
    """

    def __init__(
        self,
        encoder: StructureEncoderConfig,
        decoder: StructureDecoderConfig,
        learning_rate: float = 1e-3,
        kl: float = 1e-3,
        turned: bool = True,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = StructureEncoder(encoder), StructureDecoder(decoder)
        self.learning_rate = learning_rate
        self.kl = kl
        self.turned = turned

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        target = self._turned(batch["occupancy"]) if self.turned else batch["occupancy"]
        mean, logvar = self.encoder(target)
        logits = self.decoder(sampled(mean, logvar))
        dice, kl = dice_loss(logits, target), kl_loss(mean, logvar)
        self.log("loss/dice", dice.detach())
        self.log("loss/kl", kl.detach())
        return dice + self.kl * kl

    def _turned(self, occupancy: Tensor) -> Tensor:
        turns, mirrored = int(torch.randint(4, ())), torch.rand(len(occupancy)) < 0.5
        occupancy = torch.rot90(occupancy, turns, dims=(2, 3))
        return torch.where(
            mirrored.to(occupancy.device)[:, None, None, None, None], occupancy.flip(2), occupancy
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        target = batch["occupancy"]
        mean, _ = self.encoder(target)
        logits = self.decoder(mean)
        size = len(target)
        self.log("val/iou", grid_iou(logits > 0, target > 0.5).mean(), batch_size=size)
        self.log("val/dice", dice_loss(logits, target), batch_size=size)
        self.log("val/latent_std", mean.std(), batch_size=size)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.parameters(), self.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        return warmup_cosine(optimizer, int(self.trainer.estimated_stepping_batches))

    def on_train_end(self) -> None:
        training, metrics = export_record(self.trainer)
        folder = Path(self.trainer.default_root_dir) / "model"
        for name, network in (("encoder", self.encoder), ("decoder", self.decoder)):
            save_network(folder / name, network, training=training, metrics=metrics)
