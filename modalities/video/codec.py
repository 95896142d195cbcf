"""A small causal video autoencoder: pairs of frames to latents and back, chunk by chunk without seams."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

UNSHUFFLE = 4  # convolutions at full resolution would cost more than all the rest
STRIDE = 8  # pixels per latent pixel, both ways


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Sizes of a ``VideoCodec``."""

    channels: int = 12
    frames_per_latent: int = 2
    width: int = 64
    depth: int = 2
    """Residual blocks per resolution in the decoder; the encoder always has one."""

    def __post_init__(self) -> None:
        for name in ("channels", "frames_per_latent", "width", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


def conv(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


class ResidualBlock(nn.Module):
    """Two convolutions on a skip; the second starts at zero, so a deep stack starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = conv(width, width)
        self.second = conv(width, width)
        nn.init.zeros_(self.second.weight)

    def forward(
        self, x: Float[Tensor, " batch width rows columns"]
    ) -> Float[Tensor, " batch width rows columns"]:
        return x + self.second(F.silu(self.first(F.silu(x))))


class MemoryBlock(nn.Module):
    """A residual block that also sees its own input one latent frame earlier (zeros before the first)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = conv(2 * width, width)
        self.second = conv(width, width)
        nn.init.zeros_(self.second.weight)

    def forward(
        self,
        x: Float[Tensor, " batch frame width rows columns"],
        memory: Float[Tensor, " batch 1 width rows columns"],
    ) -> Float[Tensor, " batch frame width rows columns"]:
        earlier = torch.cat([memory, x[:, :-1]], dim=1)
        seen = F.silu(torch.cat([x, earlier], dim=2)).flatten(0, 1)
        return x + self.second(F.silu(self.first(seen))).view_as(x)


class Decoder(nn.Module):
    """Latents to frames. The memory blocks are the only place where frames meet, which is what makes
    streaming exact.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        wide, narrow = 2 * config.width, config.width
        self.entry = conv(config.channels, wide)
        self.memories = nn.ModuleList(MemoryBlock(wide) for _ in range(config.depth))
        self.expand = conv(wide, 4 * narrow)
        self.refine = nn.Sequential(*(ResidualBlock(narrow) for _ in range(config.depth)))
        self.exit = conv(narrow, 3 * config.frames_per_latent * UNSHUFFLE**2)

    def forward(self, latents: Tensor, memory: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        frames = latents.shape[1]
        h = self.entry(latents.flatten(0, 1)).unflatten(0, (-1, frames))
        kept = []
        for block, last in zip(self.memories, memory, strict=True):
            kept.append(h[:, -1:])
            h = block(h, last)
        h = F.pixel_shuffle(self.expand(F.silu(h.flatten(0, 1))), 2)
        pixels = F.pixel_shuffle(self.exit(F.silu(self.refine(h))), UNSHUFFLE)
        pixels = pixels.unflatten(1, (self.config.frames_per_latent, 3))
        return pixels.unflatten(0, (-1, frames)).flatten(1, 2), kept


class VideoCodec(nn.Module):
    """``[B, N, 3, H, W]`` pixels in [-1, 1] to latents ``[B, N / frames_per_latent, C, H / 8, W / 8]``
    and back.

    Latents have zero mean and unit variance per channel (a batch norm without affine at the bottleneck
    holds the statistics), as the diffusion transformer wants them.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        wide, narrow = 2 * config.width, config.width
        self.encoder = nn.Sequential(
            conv(3 * config.frames_per_latent * UNSHUFFLE**2, narrow),
            ResidualBlock(narrow),
            conv(narrow, wide, stride=2),
            ResidualBlock(wide),
            conv(wide, config.channels),
        )
        self.latent_norm = nn.BatchNorm2d(config.channels, affine=False, momentum=0.01)
        self.decoder = Decoder(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.entry.weight.dtype

    def encode(
        self, pixels: Float[Tensor, " batch pixel_frame 3 height width"]
    ) -> Float[Tensor, " batch frame channel h w"]:
        """Latents of whole groups of frames."""
        group = self.config.frames_per_latent
        if pixels.shape[1] % group or pixels.shape[3] % STRIDE or pixels.shape[4] % STRIDE:
            raise ValueError(
                f"pixels of shape {tuple(pixels.shape)}: frames must be a multiple of {group}, "
                f"height and width of {STRIDE}; crop or pad them"
            )
        frames = pixels.shape[1] // group
        folded = F.pixel_unshuffle(pixels.to(self.dtype).reshape(-1, 3 * group, *pixels.shape[3:]), UNSHUFFLE)
        return self.latent_norm(self.encoder(folded)).unflatten(0, (-1, frames))

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames of so many latent frames."""
        return self.config.frames_per_latent * latent_frames

    def memory(self, batch: int, height: int, width: int) -> list[Float[Tensor, " batch 1 width h w"]]:
        """The decoder's state before the first frame, for latents of ``height`` x ``width``."""
        shape = (batch, 1, 2 * self.config.width, height, width)
        return [
            torch.zeros(shape, dtype=self.dtype, device=self.decoder.entry.weight.device)
            for _ in self.decoder.memories
        ]

    def decode_chunk(
        self, latents: Float[Tensor, " batch frame channel h w"], memory: list[Tensor]
    ) -> tuple[Float[Tensor, " batch pixel_frame 3 height width"], list[Tensor]]:
        """Pixels of one chunk, and the state with which the next chunk goes on as if there were no seam."""
        return self.decoder(latents.to(self.dtype), memory)

    def decode(
        self, latents: Float[Tensor, " batch frame channel h w"]
    ) -> Float[Tensor, " batch pixel_frame 3 height width"]:
        """Pixels of a whole clip."""
        return self.decode_chunk(latents, self.memory(latents.shape[0], *latents.shape[-2:]))[0]
