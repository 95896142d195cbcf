"""What `use_fp16` means on a GPU: inner layers in half precision, the first, the last and norms in full."""

from collections.abc import Callable

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
)
from fewstep.modalities.shape3d.networks.structure_flow import StructureFlow, StructureFlowConfig
from fewstep.modalities.shape3d.networks.structure_vae import (
    StructureDecoder,
    StructureDecoderConfig,
    StructureEncoder,
    StructureEncoderConfig,
)
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor


def voxels(channels: int) -> SparseTensor:
    coords = (torch.rand(2, 8, 8, 8) < 0.2).nonzero()
    return SparseTensor.of(torch.randn(len(coords), channels), coords, batch_size=2, resolution=8)


def latent_flow(half: bool) -> tuple[nn.Module, tuple[object, ...]]:
    config = LatentFlowConfig(
        resolution=8,
        model_channels=32,
        cond_channels=6,
        num_blocks=1,
        num_heads=2,
        io_block_channels=(16,),
        use_fp16=half,
    )
    return LatentFlow(config), (voxels(8), torch.tensor([0.2, 0.9]), torch.randn(2, 5, 6))


def structure_flow(half: bool) -> tuple[nn.Module, tuple[object, ...]]:
    config = StructureFlowConfig(
        resolution=4, model_channels=32, cond_channels=6, num_blocks=1, num_heads=2, use_fp16=half
    )
    inputs = (torch.randn(2, 8, 4, 4, 4), torch.tensor([0.2, 0.9]), torch.randn(2, 5, 6))
    return StructureFlow(config), inputs


def structure_encoder(half: bool) -> tuple[nn.Module, tuple[object, ...]]:
    config = StructureEncoderConfig(channels=(4, 8), num_res_blocks=1, use_fp16=half)
    return StructureEncoder(config), (torch.rand(2, 1, 8, 8, 8),)


def structure_decoder(half: bool) -> tuple[nn.Module, tuple[object, ...]]:
    config = StructureDecoderConfig(channels=(8, 4), num_res_blocks=1, use_fp16=half)
    return StructureDecoder(config), (torch.randn(2, 8, 4, 4, 4),)


def latent_encoder(half: bool) -> tuple[nn.Module, tuple[object, ...]]:
    config = LatentEncoderConfig(
        in_channels=5, resolution=8, model_channels=32, num_blocks=2, num_heads=2, use_fp16=half
    )
    return LatentEncoder(config), (voxels(5),)


def mesh_decoder(half: bool) -> tuple[nn.Module, tuple[object, ...]]:
    config = MeshDecoderConfig(resolution=8, model_channels=256, num_blocks=1, num_heads=4, use_fp16=half)
    return MeshDecoder(config), (voxels(8),)


def gaussian_decoder(half: bool) -> tuple[nn.Module, tuple[object, ...]]:
    config = GaussianDecoderConfig(resolution=8, model_channels=32, num_blocks=1, num_heads=2, use_fp16=half)
    return GaussianDecoder(config), (voxels(8),)


def values(out: object) -> Tensor:
    first = out[0] if isinstance(out, tuple) else out
    return first.feats if isinstance(first, SparseTensor) else torch.as_tensor(first)


NETWORKS = [
    latent_flow,
    structure_flow,
    structure_encoder,
    structure_decoder,
    latent_encoder,
    mesh_decoder,
    gaussian_decoder,
]


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_half_precision_inside_gives_nearly_the_same_outside(
    make: Callable[[bool], tuple[nn.Module, tuple[object, ...]]],
) -> None:
    full, inputs = make(False)
    half = make(True)[0]
    for parameter in full.parameters():
        nn.init.normal_(parameter.data, std=0.1)
    half.load_state_dict(full.state_dict())
    kinds = {parameter.dtype for parameter in half.parameters()}
    assert kinds == {torch.float16, torch.float32}
    with torch.inference_mode():
        expected, found = values(full(*inputs)), values(half(*inputs))
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert (found - expected).norm() < 1e-2 * expected.norm()
