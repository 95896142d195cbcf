"""The image encoder of the bundled preset: a small vision transformer (Dosovitskiy et al., 2021) on a
convolutional stem (Xiao et al., 2021), which learns from few pictures what patches alone do not.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.modalities.shape3d.networks.blocks import (
    BLOCK_EPS,
    FINAL_EPS,
    DenseRows,
    FeedForward,
    SelfAttention,
    WideLayerNorm,
    plain_norm,
)


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """Sizes of an ``ImageEncoder``.

    Args:
        image_size: pixels along an edge.
        patch_size: pixels along the edge of what becomes one token, a power of 2.
        channels: of a token.
    """

    image_size: int = 64
    patch_size: int = 8
    channels: int = 128
    num_blocks: int = 4
    num_heads: int = 4
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size or self.channels % self.num_heads:
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}, and "
                f"channels={self.channels} one of num_heads={self.num_heads}"
            )

        if self.patch_size < 2 or self.patch_size & (self.patch_size - 1):
            raise ValueError(
                f"patch_size={self.patch_size} must be a power of 2 from 2: the stem halves pictures"
            )

    @property
    def num_tokens(self) -> int:
        """One for the whole picture, and one per patch."""
        return 1 + (self.image_size // self.patch_size) ** 2


class ResidualConv(nn.Module):
    """Two convolutions behind norms, around which the input passes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(1, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(1, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(
        self, x: Float[Tensor, " batch dim height width"]
    ) -> Float[Tensor, " batch dim height width"]:
        return x + self.layers(x)


def stem(channels: int, patch_size: int) -> nn.Sequential:
    """Pictures to ``channels`` per patch: halved again and again, with twice the channels each time."""
    layers: list[nn.Module] = []
    halvings, width = patch_size.bit_length() - 1, 3
    for number in range(halvings):
        wider = max(1, channels >> (halvings - 1 - number))
        layers.append(nn.Conv2d(width, wider, 3, stride=2, padding=1))
        if number:  # at full size a residual block costs more than all the others
            layers.append(ResidualConv(wider))
        width = wider
    return nn.Sequential(*layers, nn.GroupNorm(1, channels))


class ViTBlock(nn.Module):
    """Self-attention and feed-forward layer behind norms."""

    def __init__(self, channels: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = WideLayerNorm(channels, eps=BLOCK_EPS)
        self.attn = SelfAttention(channels, num_heads, qk_rms_norm=False)
        self.norm2 = WideLayerNorm(channels, eps=BLOCK_EPS)
        self.mlp = FeedForward(channels, mlp_ratio)

    def forward(self, x: Float[Tensor, " batch token dim"]) -> Float[Tensor, " batch token dim"]:
        x = x + self.attn(self.norm1(x), DenseRows())
        return x + self.mlp(self.norm2(x))


class ImageEncoder(nn.Module):
    """Pictures to normalised tokens, which is what TRELLIS makes of DINOv2's; zeros stand for no picture."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.stem = stem(channels, config.patch_size)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, channels))
        self.positions = nn.Parameter(0.02 * torch.randn(1, config.num_tokens, channels))
        self.blocks = nn.ModuleList(
            ViTBlock(channels, config.num_heads, config.mlp_ratio) for _ in range(config.num_blocks)
        )

    @property
    def token_shape(self) -> tuple[int, int]:
        """Number of tokens of a picture and their channels."""
        return self.config.num_tokens, self.config.channels

    def forward(self, pictures: Float[Tensor, " batch 3 height width"]) -> Float[Tensor, " batch token dim"]:
        """Tokens of pictures in 0 to 1 on black, the first of them for the whole picture."""
        patches = self.stem(2 * pictures - 1).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return plain_norm(x, FINAL_EPS)
