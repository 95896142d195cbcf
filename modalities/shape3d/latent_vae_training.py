"""Training of the autoencoder of active voxels' contents: sparse features to latents to a mesh."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from fewstep.core.training.run_folder import export_record
from fewstep.core.training.schedules import warmup_cosine
from fewstep.modalities.shape3d.data.corners import cell_corners, corner_numbers
from fewstep.modalities.shape3d.data.recolouring import recoloured
from fewstep.modalities.shape3d.data.shapes import Batch
from fewstep.modalities.shape3d.data.voxels import BAND, CELLS_PER_VOXEL
from fewstep.modalities.shape3d.encoding import voxel_tensor
from fewstep.modalities.shape3d.losses import (
    appearance_loss,
    consistency_loss,
    distance_at,
    distance_loss,
    kl_loss,
    sampled,
)
from fewstep.modalities.shape3d.model_folder import load_as, save_network
from fewstep.modalities.shape3d.networks.latent_vae import (
    LatentEncoder,
    LatentEncoderConfig,
    MeshDecoder,
    MeshDecoderConfig,
)
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor
from fewstep.modalities.shape3d.surface.flexicubes import Cells, extract_surface

# channels of a cell: signed distance 8, deformation 8 x 3, weights 21, colour 8 x 6
DISTANCE, DEFORM, WEIGHTS, COLOUR = slice(0, 8), slice(8, 32), slice(32, 53), slice(53, 101)

# What 1 of the decoder's distances stands for. The surface does not depend on it; were it the unit cube's 64,
# an optimizer's steps would move every distance by cells, and its gradients would drown those of colours.
CELLS_PER_UNIT = 4.0


class LatentVAETraining(LightningModule):
    """Corner targets instead of a renderer: distances, colours and normals at the corners of active cells.

    With d in cells and the terms of `losses`,

    .. math:: L = L_d + w_a (w_c L_{colour} + L_{normal}) + w_r (|deform|^2 + |weights|^2 + L_{consistency})
        + w_{KL} L_{KL}

    where consistency is that of distances and colours. The surface is the zero of the mean distance of the
    cells at each corner, less the bias of 1 / (4 R) that TRELLIS's extraction takes off.

    In the last part of the training the surface itself is extracted (FlexiCubes, Shen et al., 2023), which is
    what deformations and weights are for: the true distances at its vertices, in cells, and half of the
    vertices' deviation from their edges' crossings are added to the loss.

    Batches hold ``coords``, ``features`` and the corner targets.

    Args:
        encoder: sizes; or the folder of a trained one, which stays as it is: then a decoder alone is trained,
            another one for the same latents, which flows know already.
        decoder: sizes.
        learning_rate: peak of a warm-up and cosine schedule over the trainer's ``max_steps``.
        appearance: weight of colours and normals.
        colour: weight of colours on top of that; they alone cross the latents without help from geometry,
            so that at 1 a short training never opens a channel for them.
        regulariser: weight of deformations, weights and consistency.
        kl: weight of the posterior's divergence.
        surface_share: part of the steps, the last ones, in which the surface is extracted; 0 is never.
        recoloured_share: part of the objects that are shown in other colours, see ``recoloured``.
        start: folder with the encoder and the decoder of a finished training to go on from, of these sizes.
    """

    def __init__(
        self,
        encoder: LatentEncoderConfig | Path,
        decoder: MeshDecoderConfig,
        learning_rate: float = 5e-4,
        appearance: float = 1.0,
        colour: float = 1.0,
        regulariser: float = 1e-2,
        kl: float = 1e-6,
        surface_share: float = 0.1,
        recoloured_share: float = 0.7,
        start: Path | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= surface_share <= 1:
            raise ValueError(f"surface_share={surface_share} is a part of the steps; give 0 to 1")
        if not 0 <= recoloured_share <= 1:
            raise ValueError(f"recoloured_share={recoloured_share} is a part of the objects; give 0 to 1")
        self.surface_share = surface_share
        self.recoloured_share = recoloured_share
        self.encoder = (
            load_as(LatentEncoder, encoder) if isinstance(encoder, Path) else LatentEncoder(encoder)
        )
        self.encoder.requires_grad_(not isinstance(encoder, Path))
        self.decoder = MeshDecoder(decoder)
        if start is not None:
            if isinstance(encoder, Path):
                raise ValueError(
                    f"start={start} has an encoder of its own; give either, not encoder={encoder}"
                )
            self._go_on_from(start)
        self.learning_rate = learning_rate
        self.appearance = appearance
        self.colour = colour
        self.regulariser = regulariser
        self.kl = kl

    def _go_on_from(self, folder: Path) -> None:
        for name, network in (("encoder", self.encoder), ("decoder", self.decoder)):
            trained = load_as(type(network), folder / name)
            if trained.config != network.config:
                raise ValueError(
                    f"start={folder}: its {name} is {trained.config}, not {network.config}; give equal sizes"
                )
            network.load_state_dict(trained.state_dict())

    @property
    def resolution(self) -> int:
        """Voxels per axis."""
        return self.encoder.config.resolution

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        draws = torch.Generator(self.device).manual_seed(int(torch.randint(2**31, ())))
        batch = recoloured(batch, self.resolution, share=self.recoloured_share, generator=draws)
        mean, logvar = self.encoder(voxel_tensor(batch, self.resolution))
        latents = mean.replace(sampled(mean.feats, logvar.feats))
        cells = self.decoder(latents)
        terms = self._terms(batch, cells)
        if mean.feats.requires_grad:
            terms["kl"] = kl_loss(mean.feats, logvar.feats)
        if self.trainer.global_step >= (1 - self.surface_share) * self.trainer.max_steps:
            terms["surface"], terms["deviation"] = self._surface(batch, cells)
        for name, value in terms.items():
            self.log(f"loss/{name}", value.detach())
        return (
            terms["distance"]
            + self.appearance * (self.colour * terms["colour"] + terms["normal"])
            + self.regulariser * (terms["weights"] + terms["consistency"])
            + self.kl * terms.get("kl", 0.0)
            + sum((terms.get(name, 0.0) for name in ("surface", "deviation")), torch.zeros(()))
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

    def _surface(self, batch: Batch, cells: SparseTensor) -> tuple[Tensor, Tensor]:
        """Mean distance of extracted vertices from the true surface, and half their deviation, in cells."""
        numbers = corner_numbers(batch["coords"], len(batch["numbers"]), self.resolution)
        size = CELLS_PER_VOXEL * self.resolution
        away, deviations = [], []
        for number, rows in enumerate(cells.layout):
            feats = cells.feats[rows].float()
            surface = extract_surface(
                Cells(
                    coords=cells.coords[rows, 1:].long(),
                    sdf=self.distance(feats)
                    / CELLS_PER_UNIT,  # as it is extracted: unknown corners are 1 outside
                    deform=feats[:, DEFORM].unflatten(1, (8, 3)),
                    weights=feats[:, WEIGHTS],
                    resolution=size,
                )
            )
            known = numbers[number]
            field = torch.where(known >= 0, batch["corner_distance"][known.clamp(min=0)], BAND)
            away.append(distance_at(surface.vertices, field).abs())
            deviations.append(size * surface.deviation)
        if not sum(map(len, away)):
            zero = cells.feats.sum() * 0
            return zero, zero
        return torch.cat(away).mean(), 0.5 * torch.cat(deviations).mean()

    def distance(self, feats: Tensor) -> Tensor:
        """Signed distances in cells of decoded cells' corners, less the extractor's bias."""
        return CELLS_PER_UNIT * (feats[:, DISTANCE] - 1 / (CELLS_PER_VOXEL * self.resolution))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        size = len(batch["numbers"])
        mean, _ = self.encoder(voxel_tensor(batch, self.resolution))
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
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, self.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
        return warmup_cosine(optimizer, int(self.trainer.estimated_stepping_batches))

    def on_train_end(self) -> None:
        training, metrics = export_record(self.trainer)
        folder = Path(self.trainer.default_root_dir) / "model"
        for name, network in (("encoder", self.encoder), ("decoder", self.decoder)):
            save_network(folder / name, network, training=training, metrics=metrics)
