"""A small image autoencoder: pixels to normalised latents and back."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.modalities.video.codec import UNSHUFFLE, ResidualBlock, conv

STRIDE = 8  # pixels per latent pixel, both ways


@dataclass(frozen=True, kw_only=True)
class ImageCodecConfig:
    """Sizes of an ``ImageCodec``; ``depth`` is residual blocks per resolution of the decoder."""

    channels: int = 16
    width: int = 64
    depth: int = 2

    def __post_init__(self) -> None:
        for name in ("channels", "width", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


class ImageCodec(nn.Module):
    """``[B, 3, H, W]`` pixels in [-1, 1] to latents ``[B, C, H / 8, W / 8]`` and back.

    Latents have zero mean and unit variance per channel (a batch norm without affine holds the statistics).
    """

    def __init__(self, config: ImageCodecConfig) -> None:
        super().__init__()
        self.config = config
        wide, narrow = 2 * config.width, config.width
        self.encoder = nn.Sequential(
            conv(3 * UNSHUFFLE**2, narrow),
            ResidualBlock(narrow),
            conv(narrow, wide, stride=2),
            ResidualBlock(wide),
            conv(wide, config.channels),
        )
        self.latent_norm = nn.BatchNorm2d(config.channels, affine=False, momentum=0.01)
        self.decoder = nn.Sequential(
            conv(config.channels, wide),
            *(ResidualBlock(wide) for _ in range(config.depth)),
            nn.SiLU(),
            conv(wide, 4 * narrow),
            nn.PixelShuffle(2),
            *(ResidualBlock(narrow) for _ in range(config.depth)),
            nn.SiLU(),
            conv(narrow, 3 * UNSHUFFLE**2),
            nn.PixelShuffle(UNSHUFFLE),
        )

    @property
    def dtype(self) -> torch.dtype:
        first = self.encoder[0]
        assert isinstance(first, nn.Conv2d)
        return first.weight.dtype

    def encode(self, pixels: Float[Tensor, " batch 3 height width"]) -> Float[Tensor, " batch channel h w"]:
        """Latents; height and width must be multiples of 8."""
        if pixels.shape[-2] % STRIDE or pixels.shape[-1] % STRIDE:
            size = f"{pixels.shape[-2]}x{pixels.shape[-1]}"
            raise ValueError(f"pixels of {size}: both must be multiples of {STRIDE}; crop them")
        return self.latent_norm(self.encoder(F.pixel_unshuffle(pixels.to(self.dtype), UNSHUFFLE)))

    def decode(self, latents: Float[Tensor, " batch channel h w"]) -> Float[Tensor, " batch 3 height width"]:
        """Pixels, which may overshoot [-1, 1] a little."""
        return self.decoder(latents.to(self.dtype))
