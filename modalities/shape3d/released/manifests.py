"""What the weights of TRELLIS's released models look like: names, shapes and sizes, without the weights."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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

DIGEST_LENGTH = 16


@dataclass(frozen=True)
class Manifest:
    """A state dict in short.

    Args:
        tensors: how many, buffers included.
        parameters: numbers in parameters, buffers not included.
        bytes: of all tensors.
        digest: first 16 hexadecimal digits of the SHA-256 of the sorted lines "name [shape]".
    """

    tensors: int
    parameters: int
    bytes: int
    digest: str


def manifest_of(network: nn.Module) -> Manifest:
    """That of a network as it is, on any device."""
    state = network.state_dict()
    lines = "".join(f"{name} {list(state[name].shape)}\n" for name in sorted(state))
    return Manifest(
        tensors=len(state),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        bytes=sum(value.numel() * value.element_size() for value in state.values()),
        digest=hashlib.sha256(lines.encode()).hexdigest()[:DIGEST_LENGTH],
    )


def built_without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose tensors have shapes and dtypes, but no values."""
    with torch.device("meta"):
        return build()


def _structure_flow(**sizes: Any) -> Callable[[], nn.Module]:
    return lambda: StructureFlow(StructureFlowConfig(use_fp16=True, **sizes))


def _latent_flow(*, io_block_channels: tuple[int, ...] = (128,), **sizes: Any) -> Callable[[], nn.Module]:
    config = LatentFlowConfig(use_fp16=True, io_block_channels=io_block_channels, **sizes)
    return lambda: LatentFlow(config)


_base: dict[str, Any] = {"model_channels": 768, "num_blocks": 12, "num_heads": 12, "cond_channels": 768}
_xlarge: dict[str, Any] = {"model_channels": 1280, "num_blocks": 28, "num_heads": 16, "cond_channels": 768}

RELEASED: Mapping[str, tuple[Callable[[], nn.Module], Manifest]] = {
    "structure encoder": (
        lambda: StructureEncoder(StructureEncoderConfig(use_fp16=True)),
        Manifest(74, 59_298_192, 119_061_568, "677c9a2a74c49748"),
    ),
    "structure decoder": (
        lambda: StructureDecoder(StructureDecoderConfig(use_fp16=True)),
        Manifest(74, 73_671_201, 147_585_412, "466ed12ce177a500"),
    ),
    "latent encoder": (
        lambda: LatentEncoder(LatentEncoderConfig(use_fp16=True)),
        Manifest(100, 85_817_104, 173_233_216, "75659e128e872700"),
    ),
    "Gaussian decoder": (
        lambda: GaussianDecoder(GaussianDecoderConfig(use_fp16=True)),
        Manifest(101, 85_369_024, 171_441_280, "1afcdce68e5f5505"),
    ),
    "mesh decoder": (
        lambda: MeshDecoder(MeshDecoderConfig(use_fp16=True)),
        Manifest(120, 90_926_693, 181_891_796, "d22f3ba033f1f848"),
    ),
    "radiance field decoder": (
        lambda: RadianceFieldDecoder(RadianceFieldDecoderConfig(use_fp16=True)),
        Manifest(100, 85_369_024, 171_440_896, "208896a50e51f9f1"),
    ),
    "structure flow, image-large": (
        _structure_flow(),
        Manifest(489, 555_543_560, 1_130_721_312, "d083d733a9713d07"),
    ),
    "latent flow, image-large": (
        _latent_flow(),
        Manifest(526, 600_432_520, 1_203_701_792, "ba676303ace4ac58"),
    ),
    "structure flow, text-base": (
        _structure_flow(**_base),
        Manifest(249, 156_726_536, 327_711_776, "e38e2d922530e259"),
    ),
    "latent flow, text-base": (
        _latent_flow(**_base),
        Manifest(286, 185_364_616, 372_391_456, "5ce61d239e4eefb4"),
    ),
    "structure flow, text-large": (
        _structure_flow(cond_channels=768),
        Manifest(489, 542_960_648, 1_105_555_488, "667a5b8c5600c3b6"),
    ),
    "latent flow, text-large": (
        _latent_flow(cond_channels=768),
        Manifest(526, 587_849_608, 1_178_535_968, "fbaf6100a1895f3a"),
    ),
    "structure flow, text-xlarge": (
        _structure_flow(qk_rms_norm_cross=True, **_xlarge),
        Manifest(625, 975_440_648, 1_976_263_712, "afb411a5d453108a"),
    ),
    "latent flow, text-xlarge": (
        _latent_flow(io_block_channels=(256,), num_io_res_blocks=3, **_xlarge),
        Manifest(624, 1_073_414_408, 2_151_078_944, "844ac317f874e96a"),
    ),
}
