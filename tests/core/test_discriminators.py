"""Discriminators: losses at known logits, layouts, frozen encoders; and that they can tell two sets apart."""

import math

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.discriminators import (
    PixelDiscriminator,
    PixelPyramid,
    TokenHead,
    discriminator_losses,
    generator_losses,
)


def test_at_logits_of_0_the_discriminator_loses_2_ln_2_and_the_generators_slope_is_minus_a_half() -> None:
    """T-DMD-6."""
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    real, fake = discriminator_losses(logits, logits)
    torch.testing.assert_close(real + fake, torch.full_like(logits, 2 * math.log(2)))
    (slope,) = torch.autograd.grad(generator_losses(logits).sum(), logits)
    torch.testing.assert_close(slope, torch.full_like(logits, -0.5))


def test_losses_are_the_cross_entropies_of_real_and_fake() -> None:
    real, fake = torch.randn(2, 5, dtype=torch.float64)
    of_real, of_fake = discriminator_losses(real, fake)
    torch.testing.assert_close(of_real, -real.sigmoid().log())
    torch.testing.assert_close(of_fake, -(1 - fake.sigmoid()).log())
    torch.testing.assert_close(generator_losses(fake), -fake.sigmoid().log())


def test_a_token_head_judges_each_token_alone() -> None:
    head = TokenHead(6, hidden=8)
    features = torch.randn(2, 3, 4, 6)
    logits = head(features)
    assert logits.shape == (2, 3, 4)
    torch.testing.assert_close(logits.flatten(), head(features.view(24, 6)))


def test_a_token_head_takes_features_of_another_precision() -> None:
    assert TokenHead(6, hidden=8)(torch.randn(2, 3, 6, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("sizes", [(0, 8, 2), (6, 0, 2), (6, 8, 0)])
def test_an_empty_head_is_refused(sizes: tuple[int, int, int]) -> None:
    dim, hidden, layers = sizes
    with pytest.raises(ValueError, match="at least 1"):
        TokenHead(dim, hidden=hidden, layers=layers)


def test_a_pixel_discriminator_has_one_logit_per_level_and_averages_views() -> None:
    discriminator = PixelDiscriminator(channels=(4, 6), hidden=5)
    pixels = torch.rand(2, 3, 3, 8, 8)
    logits = discriminator(pixels)
    assert logits.shape == (2, 2)
    views = torch.stack([discriminator(pixels[:, view : view + 1]) for view in range(3)])
    torch.testing.assert_close(logits, views.mean(0))


def test_the_pyramid_halves_at_every_level() -> None:
    maps = PixelPyramid((4, 6))(torch.rand(1, 3, 8, 12))
    assert [tuple(level.shape) for level in maps] == [(1, 4, 4, 6), (1, 6, 2, 3)]


class Encoder(nn.Module):
    """Two maps of an image, remembering what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, 4, 1)
        self.dropout = nn.Dropout(0.5)
        self.seen = torch.empty(0)

    def forward(self, images: Tensor) -> list[Tensor]:
        self.seen = images.detach()
        return [self.dropout(self.projection(images)), images]


def test_a_given_encoder_is_frozen_still_and_sees_pixels_in_minus_1_to_1() -> None:
    encoder = Encoder()
    discriminator = PixelDiscriminator(encoder, channels=(4, 3), hidden=5)
    discriminator.train()
    pixels = torch.rand(2, 1, 3, 4, 4, requires_grad=True)
    first, second = discriminator(pixels), discriminator(pixels)
    assert torch.equal(first, second)
    torch.testing.assert_close(encoder.seen, (2 * pixels - 1).flatten(0, 1).detach())
    first.sum().backward()
    assert encoder.projection.weight.grad is None
    assert pixels.grad is not None
    assert pixels.grad.abs().max() > 0
    trained = {name.split(".")[0] for name, w in discriminator.named_parameters() if w.requires_grad}
    assert trained == {"heads"}


def test_the_pyramid_of_its_own_is_trained() -> None:
    discriminator = PixelDiscriminator(channels=(4,), hidden=5)
    trained = {name.split(".")[0] for name, w in discriminator.named_parameters() if w.requires_grad}
    assert trained == {"heads", "encoder"}


def test_channels_that_do_not_fit_the_encoder_are_refused() -> None:
    with pytest.raises(ValueError, match="2 feature maps for 1 channels"):
        PixelDiscriminator(Encoder(), channels=(4,))(torch.rand(1, 1, 3, 4, 4))


def test_a_pixel_discriminator_learns_to_tell_bright_from_dark() -> None:
    discriminator = PixelDiscriminator(channels=(4, 6), hidden=5)
    optimiser = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    for _ in range(40):
        real, fake = 0.5 + 0.5 * torch.rand(8, 1, 3, 8, 8), 0.5 * torch.rand(8, 1, 3, 8, 8)
        of_real, of_fake = discriminator_losses(discriminator(real), discriminator(fake))
        optimiser.zero_grad()
        (of_real.mean() + of_fake.mean()).backward()
        optimiser.step()
    assert discriminator(0.5 + 0.5 * torch.rand(4, 1, 3, 8, 8)).min() > 0
    assert discriminator(0.5 * torch.rand(4, 1, 3, 8, 8)).max() < 0
