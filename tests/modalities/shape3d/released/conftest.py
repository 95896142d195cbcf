"""A pipeline of TRELLIS's format, small and with random weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fewstep.modalities.shape3d.networks.latent_flow import LatentFlow, LatentFlowConfig
from fewstep.modalities.shape3d.networks.latent_vae import (
    GaussianDecoder,
    GaussianDecoderConfig,
    LatentEncoder,
    LatentEncoderConfig,
    MeshDecoder,
    MeshDecoderConfig,
    RadianceFieldDecoder,
    RadianceFieldDecoderConfig,
)
from fewstep.modalities.shape3d.networks.structure_flow import StructureFlow, StructureFlowConfig
from fewstep.modalities.shape3d.networks.structure_vae import (
    StructureDecoder,
    StructureDecoderConfig,
    StructureEncoder,
    StructureEncoderConfig,
)
from fewstep.modalities.shape3d.released.pipeline import ReleasedPipeline
from fewstep.modalities.shape3d.released.pipeline_json import PipelineFile
from fewstep.modalities.shape3d.sampling import FlowSampling

SIZES: dict[str, Any] = {
    "resolution": 8,
    "model_channels": 32,
    "num_blocks": 1,
    "num_heads": 2,
    "window_size": 4,
}
FLOW: dict[str, Any] = {"cond_channels": 6, "model_channels": 24, "num_blocks": 1, "num_heads": 2}


def nano(kind: str, *, use_fp16: bool = False) -> nn.Module:
    """A network of one of TRELLIS's classes with random weights, none of them zero."""
    half: dict[str, Any] = {"use_fp16": use_fp16}
    match kind:
        case "SparseStructureEncoder":
            network = StructureEncoder(StructureEncoderConfig(channels=(4, 8), num_res_blocks=1, **half))
        case "SparseStructureDecoder":
            network = StructureDecoder(StructureDecoderConfig(channels=(8, 4), num_res_blocks=1, **half))
        case "SparseStructureFlowModel":
            network = StructureFlow(StructureFlowConfig(resolution=4, **FLOW, **half))
        case "SLatFlowModel":
            network = LatentFlow(LatentFlowConfig(resolution=8, io_block_channels=(8,), **FLOW, **half))
        case "SLatEncoder":
            network = LatentEncoder(LatentEncoderConfig(in_channels=5, **SIZES, **half))
        case "SLatMeshDecoder":
            network = MeshDecoder(MeshDecoderConfig(**{**SIZES, "model_channels": 256}, **half))
        case "SLatGaussianDecoder":
            network = GaussianDecoder(GaussianDecoderConfig(**SIZES, num_gaussians=4, **half))
        case _:
            network = RadianceFieldDecoder(RadianceFieldDecoderConfig(**SIZES, **half))
    for parameter in network.parameters():
        nn.init.normal_(parameter.data, std=0.1)
    return network.eval()


@pytest.fixture
def pipeline() -> ReleasedPipeline:
    roles = {
        "sparse_structure_decoder": "SparseStructureDecoder",
        "sparse_structure_flow_model": "SparseStructureFlowModel",
        "slat_decoder_mesh": "SLatMeshDecoder",
        "slat_flow_model": "SLatFlowModel",
    }
    file = PipelineFile(
        models={role: f"ckpts/{role}_nano" for role in roles},
        structure_sampling=FlowSampling(num_steps=3),
        latent_sampling=FlowSampling(num_steps=2, guidance_scale=4.0, interval=None),
        latent_mean=tuple(0.1 * channel for channel in range(8)),
        latent_std=tuple(1 + 0.1 * channel for channel in range(8)),
        condition_model="dinov2_vitl14_reg",
    )
    torch.manual_seed(0)
    return ReleasedPipeline(file, {role: nano(kind) for role, kind in roles.items()})


@pytest.fixture
def nano_network() -> Callable[..., nn.Module]:
    """Makes a small network of one of TRELLIS's classes."""
    return nano
