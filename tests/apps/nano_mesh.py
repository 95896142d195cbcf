"""A folder in TRELLIS's format with random networks, of which every picture gets some surface."""

from pathlib import Path
from typing import Any

import torch

from fewstep.modalities.shape3d.networks.image_encoder import ImageEncoder, ImageEncoderConfig
from fewstep.modalities.shape3d.networks.latent_flow import LatentFlow, LatentFlowConfig
from fewstep.modalities.shape3d.networks.latent_vae import (
    GaussianDecoder,
    GaussianDecoderConfig,
    MeshDecoder,
    MeshDecoderConfig,
)
from fewstep.modalities.shape3d.networks.structure_flow import StructureFlow, StructureFlowConfig
from fewstep.modalities.shape3d.networks.structure_vae import StructureDecoder, StructureDecoderConfig
from fewstep.modalities.shape3d.released.pipeline import IMAGE_ENCODER, ReleasedPipeline
from fewstep.modalities.shape3d.released.pipeline_json import IMAGE_PIPELINE, TEXT_PIPELINE, PipelineFile
from fewstep.modalities.shape3d.sampling import FlowSampling

FLOW: dict[str, Any] = {"cond_channels": 16, "model_channels": 24, "num_blocks": 1, "num_heads": 2}
SIZES: dict[str, Any] = {"resolution": 8, "num_blocks": 1, "num_heads": 2, "window_size": 4}


def networks() -> dict[str, torch.nn.Module]:
    """By role; there is a decoder of Gaussians too."""
    made: dict[str, torch.nn.Module] = {
        "sparse_structure_decoder": StructureDecoder(
            StructureDecoderConfig(channels=(8, 4), num_res_blocks=1)
        ),
        "sparse_structure_flow_model": StructureFlow(StructureFlowConfig(resolution=4, **FLOW)),
        "slat_decoder_mesh": MeshDecoder(MeshDecoderConfig(model_channels=256, **SIZES)),
        "slat_flow_model": LatentFlow(LatentFlowConfig(resolution=8, io_block_channels=(8,), **FLOW)),
    }
    for network in made.values():
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter.data, std=0.1)
    last = made["sparse_structure_decoder"].get_parameter("out_layer.2.bias")
    last.data += 0.012  # or some objects would have no voxel
    with torch.random.fork_rng():  # or the encoder of pictures would have other weights, and few a surface
        sizes = GaussianDecoderConfig(model_channels=32, num_gaussians=4, **SIZES)
        made["slat_decoder_gs"] = GaussianDecoder(sizes)
    return {role: network.eval() for role, network in made.items()}


def save(root: Path) -> Path:
    """A student of one step, and a teacher of three with guidance."""
    torch.manual_seed(0)
    models = networks()
    own = {IMAGE_ENCODER: _image_encoder()}
    for place, steps, scale in (("", 1, 1.0), ("teacher", 3, 4.0)):
        file = _file(models, steps, scale, condition_model="fewstep:ckpts/image_cond_nano")
        ReleasedPipeline(file, models | own).save(root / place)
    return root


def save_text(root: Path, condition_model: str) -> Path:
    """A pipeline that takes words."""
    torch.manual_seed(0)
    models = networks()
    file = _file(models, 2, 3.0, name=TEXT_PIPELINE, condition_model=condition_model)
    ReleasedPipeline(file, models).save(root)
    return root


def _image_encoder() -> torch.nn.Module:
    return ImageEncoder(ImageEncoderConfig(image_size=16, channels=16, num_blocks=1, num_heads=2)).eval()


def _file(
    models: dict[str, torch.nn.Module],
    steps: int,
    scale: float,
    *,
    condition_model: str,
    name: str = IMAGE_PIPELINE,
) -> PipelineFile:
    sampling = FlowSampling(num_steps=steps, guidance_scale=scale, interval=None, shift=1.0)
    return PipelineFile(
        name=name,
        models={role: f"ckpts/{role}" for role in models},
        structure_sampling=sampling,
        latent_sampling=sampling,
        latent_mean=(0.0,) * 8,
        latent_std=(1.0,) * 8,
        condition_model=condition_model,
    )
