"""Latents of stored objects by trained encoders."""

from pathlib import Path

from torch import Tensor

from fewstep.core.checkpoints import read_card
from fewstep.modalities.shape3d.data.latents import cached_latents
from fewstep.modalities.shape3d.data.recolouring import COLOUR_FEATURES
from fewstep.modalities.shape3d.data.shapes import Batch, Latents, Shapes
from fewstep.modalities.shape3d.model_folder import load_as
from fewstep.modalities.shape3d.networks.latent_vae import LatentEncoder
from fewstep.modalities.shape3d.networks.structure_vae import StructureEncoder
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor

COLOUR_SCALE = 4.0  # colours in 0 to 1 deviate by about a quarter


def structure_latents(folder: Path, encoder: Path, *, cache: Path) -> Latents:
    """Posterior means ``[object, channel, r, r, r]`` of the structures of a folder of shards."""
    network = load_as(StructureEncoder, encoder)

    def encode(batch: Batch) -> tuple[Tensor, Tensor]:
        return network(batch["occupancy"])

    shapes = Shapes.of(folder, "occupancy")
    name, weights = f"structure-{folder.name}", read_card(encoder).weights_sha256
    return cached_latents(shapes, encode, name=name, weights=weights, cache=cache)


def object_latents(folder: Path, encoder: Path, *, cache: Path) -> Latents:
    """Posterior means ``[voxel, channel]`` of the active voxels of a folder of shards."""
    network = load_as(LatentEncoder, encoder)
    shapes = Shapes.of(folder, "voxels")

    def encode(batch: Batch) -> tuple[Tensor, Tensor]:
        mean, logvar = network(voxel_tensor(batch, shapes.resolution))
        return mean.feats, logvar.feats

    name, weights = f"latents-{folder.name}", read_card(encoder).weights_sha256
    return cached_latents(shapes, encode, name=name, weights=weights, cache=cache)


def voxel_tensor(batch: Batch, resolution: int) -> SparseTensor:
    """The active voxels of a batch with their features as an encoder takes them: colours centred and at the
    scale of the others, without which a short training hardly sees them.
    """
    features = batch["features"].clone()
    features[:, COLOUR_FEATURES] = COLOUR_SCALE * (features[:, COLOUR_FEATURES] - 0.5)
    return SparseTensor.of(features, batch["coords"], batch_size=len(batch["numbers"]), resolution=resolution)
