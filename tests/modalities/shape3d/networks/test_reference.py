"""Numbers that TRELLIS's own classes gave, at commit 6b0d647 with spconv 2.3.8 on a CPU, for the weights and
inputs of this file. Attention was replaced there by its formula, as its kernels need a GPU.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor

NUMBERS = json.loads((Path(__file__).parent / "reference.json").read_text())
GOLDEN_ANGLE = 2.399963229728653
ROUNDING = 1e-5  # float32 through a dozen layers


def wave(shape: tuple[int, ...], pitch: float) -> Tensor:
    """Sines of multiples of an angle: neither periodic nor small."""
    count = torch.Size(shape).numel()
    return (
        torch.sin(torch.arange(1, count + 1, dtype=torch.float64) * GOLDEN_ANGLE * pitch).float().view(shape)
    )


def filled(network: nn.Module) -> nn.Module:
    """With weights of about 1 / sqrt(inputs), each tensor in its own pitch; buffers stay as they are."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(network.named_parameters())):
            inputs = parameter[0].numel() if parameter.ndim > 1 and "gamma" not in name else 4
            parameter.copy_(1.4 * inputs**-0.5 * wave(tuple(parameter.shape), 0.1 + 0.01 * (number % 61)))
    return network


def voxels(channels: int) -> SparseTensor:
    """A tenth of the voxels of a grid of 16, in two samples that differ."""
    coords = (wave((2, 16, 16, 16), 0.7123) > 0.95).nonzero()
    return SparseTensor.of(wave((len(coords), channels), 0.37), coords, batch_size=2, resolution=16)


TIMES = torch.tensor([0.3, 0.8])
CONDITION = wave((2, 5, 24), 0.7)
LATENTS = wave((2, 8, 4, 4, 4), 0.41)


def structure_flow() -> Tensor:
    config = StructureFlowConfig(resolution=4, model_channels=64, cond_channels=24, num_blocks=2, num_heads=4)
    return filled(StructureFlow(config))(LATENTS, TIMES, CONDITION)


def structure_flow_in_patches() -> Tensor:
    config = StructureFlowConfig(
        resolution=4,
        model_channels=64,
        cond_channels=24,
        num_blocks=2,
        num_heads=4,
        patch_size=2,
        qk_rms_norm_cross=True,
        share_mod=True,
    )
    return filled(StructureFlow(config))(LATENTS, TIMES, CONDITION)


def structure_encoder() -> Tensor:
    network = filled(StructureEncoder(StructureEncoderConfig(num_res_blocks=1, channels=(8, 16))))
    return network(wave((2, 1, 8, 8, 8), 0.43))[0]


def structure_decoder() -> Tensor:
    return filled(StructureDecoder(StructureDecoderConfig(num_res_blocks=1, channels=(16, 8))))(LATENTS)


def latent_flow(**quirks: Any) -> Tensor:
    config = LatentFlowConfig(
        resolution=16,
        model_channels=64,
        cond_channels=24,
        num_blocks=2,
        num_heads=4,
        io_block_channels=(16,),
        **quirks,
    )
    return filled(LatentFlow(config))(voxels(8), TIMES, CONDITION).feats


SIZES: dict[str, Any] = {"resolution": 16, "model_channels": 256, "num_blocks": 2, "num_heads": 4}


def latent_encoder() -> Tensor:
    return filled(LatentEncoder(LatentEncoderConfig(in_channels=18, **SIZES)))(voxels(18))[0].feats


def mesh_decoder(**quirks: Any) -> Tensor:
    return filled(MeshDecoder(MeshDecoderConfig(**SIZES, **quirks)))(voxels(8)).feats


def gaussian_decoder() -> Tensor:
    return filled(GaussianDecoder(GaussianDecoderConfig(**SIZES)))(voxels(8)).feats


def radiance_field_decoder() -> Tensor:
    return filled(RadianceFieldDecoder(RadianceFieldDecoderConfig(**SIZES)))(voxels(8)).feats


NETWORKS: dict[str, Callable[[], Tensor]] = {
    "structure flow": structure_flow,
    "structure flow in patches": structure_flow_in_patches,
    "structure encoder": structure_encoder,
    "structure decoder": structure_decoder,
    "latent flow": latent_flow,
    "latent encoder": latent_encoder,
    "mesh decoder": mesh_decoder,
    "Gaussian decoder": gaussian_decoder,
    "radiance field decoder": radiance_field_decoder,
}


def distance(out: Tensor, name: str) -> float:
    """The largest difference from the recorded numbers, relative to the size of the output."""
    flat, recorded = out.double().flatten(), NUMBERS[name]
    picked = flat[torch.linspace(0, len(flat) - 1, len(recorded["values"])).long()]
    differences = [
        (picked - torch.tensor(recorded["values"], dtype=torch.float64)).abs().max().item(),
        abs(flat.mean().item() - recorded["mean"]),
        abs(flat.square().mean().sqrt().item() - recorded["rms"]),
    ]
    return max(differences) / recorded["rms"]


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_a_network_gives_the_numbers_of_the_original(name: str) -> None:
    assert distance(NETWORKS[name](), name) < ROUNDING


@torch.inference_mode()
def test_the_quirk_of_the_mean_is_in_these_numbers() -> None:
    assert distance(latent_flow(pool_include_self=False), "latent flow") > 1e-2


@torch.inference_mode()
def test_the_quirk_of_the_pointwise_weights_is_in_these_numbers() -> None:
    assert distance(mesh_decoder(reinterpret_pointwise=False), "mesh decoder") > 1e-2
