import pytest
import torch
from torch import nn

from fewstep.modalities.shape3d.networks.embedding import TimestepEmbedder, absolute_positions, grid_places
from fewstep.modalities.shape3d.networks.image_encoder import ImageEncoder, ImageEncoderConfig
from fewstep.modalities.shape3d.networks.structure_flow import StructureFlow, StructureFlowConfig
from fewstep.modalities.shape3d.networks.structure_vae import (
    StructureDecoder,
    StructureDecoderConfig,
    StructureEncoder,
    StructureEncoderConfig,
    Upsample,
)

FLOW = StructureFlowConfig(
    resolution=4, model_channels=24, cond_channels=6, num_blocks=1, num_heads=2, patch_size=2
)


def test_the_structure_autoencoder_halves_the_grid_per_level_and_back() -> None:
    encoder = StructureEncoder(StructureEncoderConfig(channels=(4, 8, 8), num_res_blocks=1))
    decoder = StructureDecoder(StructureDecoderConfig(channels=(8, 8, 4), num_res_blocks=1))
    occupancy = torch.rand(2, 1, 8, 8, 8)
    mean, logvar = encoder(occupancy)
    assert mean.shape == logvar.shape == (2, 8, 2, 2, 2)
    assert decoder(mean).shape == occupancy.shape


def test_eight_channels_become_the_eight_halves_of_a_voxel() -> None:
    layer = Upsample(1, 1)
    nn.init.zeros_(layer.conv.weight)
    with torch.no_grad():
        layer.conv.bias.copy_(torch.arange(8.0)) if layer.conv.bias is not None else None
    out = layer(torch.zeros(1, 1, 2, 2, 2))[0, 0].detach()
    assert torch.equal(out[:2, :2, :2], torch.arange(8.0).view(2, 2, 2))
    assert torch.equal(out[2:, :2, 2:], out[:2, :2, :2])


def test_only_the_released_norm_is_supported() -> None:
    with pytest.raises(ValueError, match="norm_type='group' is not supported"):
        StructureDecoderConfig(norm_type="group")


def test_patches_and_back_is_the_identity() -> None:
    flow, x = StructureFlow(FLOW), torch.randn(2, 8, 4, 4, 4)
    patches = flow._patches(x)
    assert patches.shape == (2, 8, 64)
    assert torch.equal(flow._unpatched(patches, 2), x)
    # channels first, then x, y, z within the patch; z of the grid runs fastest over tokens
    assert torch.equal(patches[0, 1, :8], x[0, 0, :2, :2, 2:].flatten())


def test_times_change_what_the_flow_says_once_it_is_trained() -> None:
    flow = StructureFlow(FLOW)
    x, condition = torch.randn(1, 8, 4, 4, 4), torch.randn(1, 5, 6)
    assert not flow(x, torch.tensor([0.3]), condition).any()
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        early, late = (flow(x, torch.tensor([t]), condition) for t in (0.3, 0.31))
    assert not torch.equal(early, late)


def test_a_time_in_half_precision_is_embedded_as_itself() -> None:
    embedder = TimestepEmbedder(16).requires_grad_(False)
    t = torch.tensor([0.123, 0.877])
    full, half = embedder(t), embedder.bfloat16()(t).float()
    torch.testing.assert_close(half, full, atol=2e-2, rtol=0)


def test_positions_are_sines_then_cosines_axis_after_axis() -> None:
    embedded = absolute_positions(grid_places(3), 3, 14)
    assert embedded.shape == (27, 14)
    assert not embedded[:, 12:].any()
    place, frequency = torch.tensor([2.0, 0.0, 1.0]), 10_000.0**-0.5  # row 19 of 27; the second of two
    for axis, coordinate in enumerate(place):
        expected = torch.tensor(
            [
                torch.sin(coordinate),
                torch.sin(coordinate * frequency),
                torch.cos(coordinate),
                torch.cos(coordinate * frequency),
            ]
        )
        torch.testing.assert_close(embedded[19, 4 * axis : 4 * axis + 4], expected)


def test_the_image_encoder_gives_normalised_tokens_and_sees_every_patch() -> None:
    config = ImageEncoderConfig(image_size=16, patch_size=8, channels=12, num_blocks=1, num_heads=2)
    encoder = ImageEncoder(config).requires_grad_(False)
    picture = torch.rand(1, 3, 16, 16)
    tokens = encoder(picture)
    assert tokens.shape[1:] == encoder.token_shape == (5, 12)
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(1, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(-1, unbiased=False), torch.ones(1, 5), atol=1e-2, rtol=0)
    for row in (0, 8):
        for column in (0, 8):
            other = picture.clone()
            other[:, :, row, column] += 0.5
            assert not torch.equal(encoder(other)[:, 0], tokens[:, 0])


def test_a_picture_that_does_not_divide_into_patches_is_an_error() -> None:
    with pytest.raises(ValueError, match="image_size=60 must be a multiple of patch_size=8"):
        ImageEncoderConfig(image_size=60)
    with pytest.raises(ValueError, match="patch_size=6 must be a power of 2"):
        ImageEncoderConfig(image_size=60, patch_size=6)


@pytest.mark.parametrize("patch_size", [2, 4, 8])
def test_the_stem_of_the_image_encoder_gives_one_token_per_patch(patch_size: int) -> None:
    config = ImageEncoderConfig(image_size=16, patch_size=patch_size, channels=8, num_blocks=1, num_heads=2)
    encoder = ImageEncoder(config).requires_grad_(False)
    assert encoder.stem(torch.rand(2, 3, 16, 16)).shape == (2, 8, 16 // patch_size, 16 // patch_size)
    assert encoder(torch.rand(2, 3, 16, 16)).shape[1:] == encoder.token_shape
