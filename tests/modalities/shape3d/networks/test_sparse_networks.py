from dataclasses import replace
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
)
from fewstep.modalities.shape3d.sparse.normalization import SparseGroupNorm
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor, Voxels

RESOLUTION = 8
SIZES: dict[str, Any] = {
    "resolution": RESOLUTION,
    "model_channels": 32,
    "num_blocks": 2,
    "num_heads": 2,
    "window_size": 4,
}
FLOW = LatentFlowConfig(
    resolution=RESOLUTION,
    model_channels=32,
    cond_channels=6,
    num_blocks=2,
    num_heads=2,
    io_block_channels=(16,),
)
ROUNDING = 2e-5


def awake(network: nn.Module) -> nn.Module:
    """With random numbers where training begins with zeros."""
    for parameter in network.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.1)
    return network.requires_grad_(False)


@pytest.fixture
def coords() -> Tensor:
    return (torch.rand(2, *[RESOLUTION] * 3) < 0.2).nonzero()


def tensor(coords: Tensor, channels: int) -> SparseTensor:
    feats = torch.randn(len(coords), channels)
    return SparseTensor.of(feats, coords, batch_size=2, resolution=RESOLUTION)


def shuffled(x: SparseTensor) -> tuple[SparseTensor, Tensor]:
    """The rows of each sample in another order, and that order."""
    order = torch.cat([rows.start + torch.randperm(rows.stop - rows.start) for rows in x.layout])
    return SparseTensor(x.feats[order], Voxels(x.coords[order], 2, RESOLUTION)), order


def test_the_latent_flow_does_not_mind_the_order_of_voxels(coords: Tensor) -> None:
    flow, x = awake(LatentFlow(FLOW)), tensor(coords, 8)
    t, condition = torch.tensor([0.2, 0.9]), torch.randn(2, 5, 6)
    moved, order = shuffled(x)
    out = flow(moved, t, condition).feats
    torch.testing.assert_close(out, flow(x, t, condition).feats[order], atol=ROUNDING, rtol=ROUNDING)


def test_a_latent_flow_whose_tokens_are_single_voxels_has_no_blocks_around_its_transformer(
    coords: Tensor,
) -> None:
    flow = awake(LatentFlow(replace(FLOW, patch_size=1, io_block_channels=())))
    assert not [
        name for name, _ in flow.named_parameters() if name.startswith(("input_blocks", "out_blocks"))
    ]
    x, t, condition = tensor(coords, 8), torch.tensor([0.2, 0.9]), torch.randn(2, 5, 6)
    out = flow(x, t, condition)
    assert out.feats.shape == x.feats.shape
    moved = x.replace(x.feats + 0.5 * (torch.arange(len(x.feats)) == 3)[:, None])
    assert not torch.equal(flow(moved, t, condition).feats[3], out.feats[3])
    with pytest.raises(ValueError, match=r"io_block_channels=\(\) must have one entry per halving"):
        replace(FLOW, io_block_channels=())


def test_the_latent_flow_of_a_batch_is_that_of_its_samples(coords: Tensor) -> None:
    flow, x = awake(LatentFlow(FLOW)), tensor(coords, 8)
    t, condition = torch.tensor([0.2, 0.9]), torch.randn(2, 5, 6)
    together = flow(x, t, condition)
    for number in range(2):
        alone = flow(x.sample(number), t[number : number + 1], condition[number : number + 1])
        torch.testing.assert_close(together.sample(number).feats, alone.feats, atol=ROUNDING, rtol=ROUNDING)


def test_a_new_latent_flow_moves_nothing(coords: Tensor) -> None:
    out = LatentFlow(FLOW)(tensor(coords, 8), torch.rand(2), torch.randn(2, 5, 6))
    assert not out.feats.any()


def test_the_latent_flow_has_forward_mode_derivatives(coords: Tensor) -> None:
    flow, x = awake(LatentFlow(FLOW)).double(), tensor(coords, 8)
    feats, tangent = x.feats.double(), torch.randn_like(x.feats).double()
    t, condition = torch.tensor([0.2, 0.9]).double(), torch.randn(2, 5, 6).double()

    def velocity(feats: Tensor, t: Tensor) -> Tensor:
        return flow(x.replace(feats), t, condition).feats

    derivative = torch.func.jvp(velocity, (feats, t), (tangent, torch.ones_like(t)))[1]
    step = 1e-6
    after, before = (velocity(feats + s * step * tangent, t + s * step) for s in (1, -1))
    torch.testing.assert_close(derivative, (after - before) / (2 * step), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attn_mode", ["swin", "full"])
def test_the_encoder_of_a_batch_is_that_of_its_samples(coords: Tensor, attn_mode: str) -> None:
    config = LatentEncoderConfig(in_channels=5, **{**SIZES, "attn_mode": attn_mode})
    encoder, x = awake(LatentEncoder(config)), tensor(coords, 5)
    mean, logvar = encoder(x)
    assert not torch.equal(mean.feats, logvar.feats)
    for number in range(2):
        torch.testing.assert_close(
            mean.sample(number).feats, encoder(x.sample(number))[0].feats, atol=ROUNDING, rtol=ROUNDING
        )


def test_windows_hide_what_is_outside_of_them(coords: Tensor) -> None:
    config = LatentEncoderConfig(in_channels=5, **{**SIZES, "num_blocks": 1})
    encoder, x = awake(LatentEncoder(config)), tensor(coords, 5)
    near = ((x.coords[:, 1:] < 4).all(1)) & (x.index == 0)
    changed = x.replace(torch.where(near[:, None], x.feats, 0.0))
    assert torch.equal(encoder(x)[0].feats[near], encoder(changed)[0].feats[near])
    assert not torch.equal(encoder(x)[0].feats[~near], encoder(changed)[0].feats[~near])


@pytest.fixture
def mesh_decoder() -> nn.Module:
    sizes = {**SIZES, "model_channels": 256, "num_blocks": 1}
    return awake(MeshDecoder(MeshDecoderConfig(**sizes)))


def test_the_mesh_decoder_makes_sixty_four_cells_of_a_voxel(coords: Tensor, mesh_decoder: nn.Module) -> None:
    x = tensor(coords, 8)
    cells = mesh_decoder(x)
    assert cells.feats.shape == (64 * len(coords), 101)
    assert cells.resolution == 4 * RESOLUTION
    assert torch.equal(cells.coords[::64, 1:] // 4, x.coords[:, 1:])


def test_the_mesh_decoder_of_a_batch_is_that_of_its_samples(coords: Tensor, mesh_decoder: nn.Module) -> None:
    x = tensor(coords, 8)
    together = mesh_decoder(x)
    for number in range(2):
        alone = mesh_decoder(x.sample(number)).feats
        torch.testing.assert_close(together.sample(number).feats, alone, atol=1e-4, rtol=1e-4)


def test_a_width_that_cannot_be_normalised_in_groups_is_an_error() -> None:
    with pytest.raises(
        ValueError, match="model_channels=192 must be a power of 2 from 8 on, or a multiple of 256"
    ):
        MeshDecoderConfig(model_channels=192, num_heads=2)


def test_a_narrow_mesh_decoder_normalises_every_channel_by_itself(coords: Tensor) -> None:
    config = MeshDecoderConfig(**{**SIZES, "model_channels": 64, "num_blocks": 1})
    decoder = awake(MeshDecoder(config))
    cells = decoder(tensor(coords, 8))
    assert cells.feats.shape == (64 * len(coords), 101)
    norms = [module.num_groups for module in decoder.modules() if isinstance(module, SparseGroupNorm)]
    assert norms == [32, 16, 16, 8]


def test_networks_in_half_precision_take_and_give_float32(coords: Tensor, mesh_decoder: nn.Module) -> None:
    x = tensor(coords, 8)
    full = mesh_decoder(x).feats
    half = mesh_decoder.bfloat16()(x).feats
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(full.flatten(), half.flatten(), dim=0) > 0.99


def test_gaussians_stay_near_their_voxels_and_start_as_the_bias_says(coords: Tensor) -> None:
    x = tensor(coords, 8)
    config = GaussianDecoderConfig(num_gaussians=4, **SIZES)
    decoder = GaussianDecoder(config).requires_grad_(False)
    first = decoder.gaussians(decoder(x))[0]
    rows = x.layout[0]
    centre = ((x.coords[rows, None, 1:] + 0.5) / RESOLUTION - 0.5).expand(-1, 4, -1).flatten(0, 1)
    assert (first["xyz"] - centre).abs().max() < 0.5 * config.voxel_size / RESOLUTION
    spread = (first["xyz"] - centre) * RESOLUTION  # a new decoder spreads them over their voxel
    torch.testing.assert_close(spread.amin(0), torch.tensor([-0.5, -0.5, -0.5]))
    torch.testing.assert_close(first["opacity"], torch.full_like(first["opacity"], config.opacity_bias))
    edge = (config.scaling_bias**2 + config.kernel_size_3d**2) ** 0.5
    torch.testing.assert_close(first["scale"], torch.full_like(first["scale"], edge))
    torch.testing.assert_close(first["rotation"][0], torch.tensor([1.0, 0.0, 0.0, 0.0]))


def test_every_parameter_of_a_decoder_learns(coords: Tensor, mesh_decoder: nn.Module) -> None:
    mesh_decoder.requires_grad_(True)
    mesh_decoder(tensor(coords, 8)).feats.square().sum().backward()
    silent = [
        name
        for name, parameter in mesh_decoder.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


def test_voxels_that_were_sampled_on_can_be_trained_on(coords: Tensor, mesh_decoder: nn.Module) -> None:
    flow, x = awake(LatentFlow(FLOW)), tensor(coords, 8)
    encoder = awake(LatentEncoder(LatentEncoderConfig(in_channels=8, **SIZES)))
    t, condition = torch.rand(2), torch.randn(2, 5, 6)
    with torch.inference_mode():  # where everything that follows from coordinates is computed and kept
        flow(x, t, condition)
        encoder(x)
        mesh_decoder(x)
    for network in (flow, encoder, mesh_decoder):
        network.requires_grad_(True)
    loss = flow(x, t, condition).feats.sum() + encoder(x)[0].feats.sum() + mesh_decoder(x).feats.sum()
    loss.backward()
    assert flow.get_parameter("input_layer.weight").grad is not None


def test_training_in_mixed_precision_gives_gradients_near_the_full_ones(
    coords: Tensor, mesh_decoder: nn.Module
) -> None:
    mesh_decoder.requires_grad_(True)
    x, weight = tensor(coords, 8), mesh_decoder.get_parameter("upsample.0.out_layers.0.conv.weight")
    full = torch.autograd.grad(mesh_decoder(x).feats.square().mean(), weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = mesh_decoder(x).feats.square().mean()
    mixed = torch.autograd.grad(loss, weight)[0]
    assert torch.nn.functional.cosine_similarity(full.flatten(), mixed.flatten(), dim=0) > 0.99
