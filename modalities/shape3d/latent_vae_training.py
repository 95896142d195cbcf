"""Training of the autoencoder of active voxels' contents: sparse features to latents to a mesh."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from fewstep.core.training.run_folder import export_record
from fewstep.core.training.schedules import warmup_cosine
from fewstep.modalities.shape3d.data.corners import cell_corners, corner_numbers
from fewstep.modalities.shape3d.data.shapes import Batch
from fewstep.modalities.shape3d.data.voxels import CELLS_PER_VOXEL
from fewstep.modalities.shape3d.encoding import voxel_tensor
from fewstep.modalities.shape3d.losses import (
    appearance_loss,
    consistency_loss,
    distance_loss,
    kl_loss,
    sampled,
)
from fewstep.modalities.shape3d.model_folder import save_network
from fewstep.modalities.shape3d.networks.latent_vae import (
    LatentEncoder,
    LatentEncoderConfig,
    MeshDecoder,
    MeshDecoderConfig,
)
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor

# channels of a cell: signed distance 8, deformation 8 x 3, weights 21, colour 8 x 6
DISTANCE, DEFORM, WEIGHTS, COLOUR = slice(0, 8), slice(8, 32), slice(32, 53), slice(53, 101)


class LatentVAETraining(LightningModule):
    """Corner targets instead of a renderer: distances, colours and normals at the corners of active cells.

    With d in cells and the terms of `losses`,

    .. math:: L = L_d + w_a (L_{colour} + L_{normal}) + w_r (|deform|^2 + |weights|^2 + L_{consistency})
        + w_{KL} L_{KL}

    where consistency is that of distances and colours. The surface is the zero of the mean distance of the
    cells at each corner, less a cell's bias, as the extractor takes it.

    Batches hold ``coords``, ``features`` and the corner targets.

    Args:
        encoder: sizes.
        decoder: sizes.
        learning_rate: peak of a warm-up and cosine schedule over the trainer's ``max_steps``.
        appearance: weight of colours and normals.
        regulariser: weight of deformations, weights and consistency.
        kl: weight of the posterior's divergence.
    """

    def __init__(
        self,
        encoder: LatentEncoderConfig,
        decoder: MeshDecoderConfig,
        learning_rate: float = 5e-4,
        appearance: float = 1.0,
        regulariser: float = 1e-2,
        kl: float = 1e-6,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = LatentEncoder(encoder), MeshDecoder(decoder)
        self.learning_rate = learning_rate
        self.appearance = appearance
        self.regulariser = regulariser
        self.kl = kl

    @property
    def resolution(self) -> int:
        """Voxels per axis."""
        return self.encoder.config.resolution

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        mean, logvar = self.encoder(voxel_tensor(batch, batch["features"], self.resolution))
        latents = mean.replace(sampled(mean.feats, logvar.feats))
        terms = self._terms(batch, self.decoder(latents))
        terms["kl"] = kl_loss(mean.feats, logvar.feats)
        for name, value in terms.items():
            self.log(f"loss/{name}", value.detach())
        return (
            terms["distance"]
            + self.appearance * (terms["colour"] + terms["normal"])
            + self.regulariser * (terms["weights"] + terms["consistency"])
            + self.kl * terms["kl"]
        )

    def _terms(self, batch: Batch, cells: SparseTensor) -> dict[str, Tensor]:
        numbers = corner_numbers(batch["coords"], len(batch["numbers"]), self.resolution)
        rows = cell_corners(cells.coords, numbers)
        distance = self.distance(cells.feats)
        colours = cells.feats[:, COLOUR].unflatten(1, (8, 6))
        colour, normal = appearance_loss(
            colours, batch["corner_distance"], batch["corner_colour"], batch["corner_normal"], rows
        )
        free = cells.feats[:, DEFORM].square().mean() + cells.feats[:, WEIGHTS].square().mean()
        return {
            "distance": distance_loss(distance, batch["corner_distance"], rows),
            "colour": colour,
            "normal": normal,
            "weights": free,
            "consistency": consistency_loss(torch.cat([distance[..., None], colours], 2), rows),
        }

    def distance(self, feats: Tensor) -> Tensor:
        """Signed distances in cells of decoded cells' corners, with the extractor's bias of a cell."""
        return feats[:, DISTANCE] * (CELLS_PER_VOXEL * self.resolution) - 1

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        size = len(batch["numbers"])
        mean, _ = self.encoder(voxel_tensor(batch, batch["features"], self.resolution))
        cells = self.decoder(mean)
        for name, value in self._terms(batch, cells).items():
            self.log(f"val/{name}", value, batch_size=size)
        rows = cell_corners(
            cells.coords, corner_numbers(batch["coords"], len(batch["numbers"]), self.resolution)
        )
        wrong = (self.distance(cells.feats) < 0) != (batch["corner_distance"] < 0)[rows]
        self.log("val/wrong_sign", wrong.float().mean(), batch_size=size)
        self.log("val/latent_std", mean.feats.std(), batch_size=size)

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
