"""Discriminators for adversarial terms: on a denoiser's features, and on pixels."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

Logits = Float[Tensor, " *logits"]


def discriminator_losses(real: Logits, fake: Logits) -> tuple[Logits, Logits]:
    r""":math:`-\ln\sigma(l_{real})` and :math:`-\ln(1 - \sigma(l_{fake}))`; both are ln 2 at a logit of 0."""
    return softplus(-real), softplus(fake)


def generator_losses(fake: Logits) -> Logits:
    r""":math:`-\ln\sigma(l_{fake})`, not saturating (Goodfellow et al., 2014)."""
    return softplus(-fake)


class TokenHead(nn.Module):
    """One logit per token of a denoiser's features; a sample's logit is their mean.

    Blind to where and how many the tokens are, so that images, masked and packed samples share it. DMD2's
    head is made for an image UNet instead: strided 4x4 convolutions, group norms and SiLUs shrink the feature
    map to one logit, whose judgement is of the whole layout. Attention in the critic brings the surroundings
    into each token here.

    Args:
        dim: size of the features' last axis.
        hidden: width of the layers between.
        layers: linear layers before the last.
    """

    def __init__(self, dim: int, *, hidden: int = 256, layers: int = 2) -> None:
        super().__init__()
        if min(dim, hidden, layers) < 1:
            raise ValueError(f"dim={dim}, hidden={hidden} and layers={layers} must be at least 1")
        stack: list[nn.Module] = []
        for width_in, width_out in pairwise([dim, *[hidden] * layers]):
            stack += [nn.LayerNorm(width_in), nn.Linear(width_in, width_out), nn.SiLU()]
        self.layers = nn.Sequential(*stack, nn.LayerNorm(hidden), nn.Linear(hidden, 1))

    def forward(self, features: Float[Tensor, " *token dim"]) -> Float[Tensor, " *token"]:
        weight = next(self.parameters())
        return self.layers(features.to(weight.dtype)).squeeze(-1)


class PixelPyramid(nn.Module):
    """Feature maps of an image at a half, a quarter, ... of its size, by strided convolutions."""

    def __init__(self, widths: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width_in, width_out, 4, stride=2, padding=1),
                nn.GroupNorm(1, width_out),
                nn.SiLU(),
            )
            for width_in, width_out in pairwise([3, *widths])
        )

    def forward(self, images: Float[Tensor, " image 3 height width"]) -> list[Tensor]:
        """[image, width, height / 2^n, width / 2^n] for n = 1, 2, ..."""
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        return maps


class PixelDiscriminator(nn.Module):
    """A logit per level of an image encoder's features, each from a head of its own.

    Args:
        encoder: called with images [M, 3, H, W] scaled to [-1, 1], returns feature maps [M, C, h, w], one per
            level. It is frozen, and its head is all that trains: Flash-DMD's has a segmentation network's
            encoder here. None is a ``PixelPyramid`` that trains.
        channels: C of each level.
        hidden: channels of the heads.
    """

    def __init__(
        self, encoder: nn.Module | None = None, *, channels: Sequence[int] = (32, 64, 128), hidden: int = 64
    ) -> None:
        super().__init__()
        self.frozen = encoder is not None
        self.encoder = PixelPyramid(channels) if encoder is None else encoder.requires_grad_(False).eval()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(level, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, 1, 1))
            for level in channels
        )

    def train(self, mode: bool = True) -> "PixelDiscriminator":
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, pixels: Float[Tensor, " batch view 3 height width"]) -> Float[Tensor, " batch level"]:
        """The mean logit of each level over places and views; ``pixels`` in [0, 1]."""
        weight = next(self.heads.parameters())
        images = (2 * pixels.flatten(0, 1) - 1).to(weight.dtype)
        maps = self.encoder(images)
        if len(maps) != len(self.heads):
            raise ValueError(
                f"encoder returned {len(maps)} feature maps for {len(self.heads)} channels; name C of each"
            )
        logits = [head(level).mean((1, 2, 3)) for head, level in zip(self.heads, maps, strict=True)]
        return torch.stack(logits, dim=1).view(*pixels.shape[:2], -1).mean(1)
