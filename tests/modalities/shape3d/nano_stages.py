"""The smallest networks and data of both stages of 3D generation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fewstep.core.training.run_folder import read_metrics
from fewstep.modalities.shape3d.data.module import ShapeDataModule
from fewstep.modalities.shape3d.data.shapes import Part
from fewstep.modalities.shape3d.networks.image_encoder import ImageEncoderConfig
from fewstep.modalities.shape3d.networks.latent_flow import LatentFlowConfig
from fewstep.modalities.shape3d.networks.latent_vae import LatentEncoderConfig, MeshDecoderConfig
from fewstep.modalities.shape3d.networks.structure_flow import StructureFlowConfig
from fewstep.modalities.shape3d.networks.structure_vae import StructureDecoderConfig, StructureEncoderConfig

QUIET = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),  # the teacher and the image encoder are
]
R = 8
STRUCTURE = StructureFlowConfig(
    resolution=4,
    in_channels=2,
    model_channels=32,
    cond_channels=16,
    out_channels=2,
    num_blocks=1,
    num_heads=2,
    patch_size=1,
)
PICTURES = ImageEncoderConfig(image_size=16, patch_size=8, channels=16, num_blocks=1, num_heads=2)
LATENT = LatentFlowConfig(
    resolution=R,
    in_channels=2,
    model_channels=32,
    cond_channels=16,
    out_channels=2,
    num_blocks=1,
    num_heads=2,
    patch_size=2,
    num_io_res_blocks=2,
    io_block_channels=(16,),
)
CARD: dict[str, Any] = {"training": {}, "metrics": {}}


def data(root: Path, cache: Path, *parts: Part, batch_size: int = 3, **encoders: Any) -> ShapeDataModule:
    return ShapeDataModule(
        str(root), list(parts), batch_size=batch_size, val_batches=1, cache=str(cache), **encoders
    )


def structure_data(root: Path, cache: Path, encoders: Path, **options: Any) -> ShapeDataModule:
    encoder = str(encoders / "structure")
    return data(root, cache, "structure_latents", "pictures", structure_encoder=encoder, **options)


def latent_data(root: Path, cache: Path, encoders: Path, **options: Any) -> ShapeDataModule:
    return data(root, cache, "latents", "pictures", latent_encoder=str(encoders / "latent"), **options)


def logged(folder: Path, name: str) -> list[float]:
    return [row[name] for row in read_metrics(folder) if name in row]


def structure_networks() -> tuple[StructureEncoderConfig, StructureDecoderConfig]:
    blocks: dict[str, Any] = {"latent_channels": 2, "num_res_blocks": 1, "num_res_blocks_middle": 1}
    return (
        StructureEncoderConfig(in_channels=1, channels=(4, 8), **blocks),
        StructureDecoderConfig(out_channels=1, channels=(8, 4), **blocks),
    )


def latent_networks() -> tuple[LatentEncoderConfig, MeshDecoderConfig]:
    sizes: dict[str, Any] = {"resolution": R, "latent_channels": 2, "num_blocks": 1, "num_heads": 4}
    return (
        LatentEncoderConfig(in_channels=18, model_channels=32, **sizes),
        MeshDecoderConfig(model_channels=256, **sizes),
    )


def roughened(network: nn.Module) -> None:
    """Random numbers on all weights: fresh networks have zeros in their last layers and so give zeros."""
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
