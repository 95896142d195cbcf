"""TAEHV, a tiny autoencoder for the latents of large ones (github.com/madebyollin/taehv): convolutions within
frames, and blocks that remember one frame.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.modalities.video.codec import STRIDE, conv
from fewstep.modalities.video.streaming_codec import DecoderMemory

BOUND = 3.0  # latents are squashed softly into +-3
BLOCKS = 3  # memory blocks per resolution

Frames = Float[Tensor, " batch _frame _channel _rows _columns"]  # which most layers change


@dataclass(frozen=True, kw_only=True)
class TAEHVConfig:
    """Sizes of a ``TAEHV``; the defaults are those for Wan 2.1's latents (``taew2_1.pth``).

    Args:
        channels: of the latents.
        widths: of the decoder, from the latents' resolution up.
        growth: new frames for each, from the latents' resolution up.
        encoder_width: the encoder's at every resolution.
        pooling: frames that become one, from full resolution down.
    """

    channels: int = 16
    widths: tuple[int, ...] = (256, 128, 64, 64)
    growth: tuple[int, ...] = (1, 2, 2)
    encoder_width: int = 64
    pooling: tuple[int, ...] = (2, 2, 1)

    def __post_init__(self) -> None:
        if len(self.widths) != 4 or len(self.growth) != 3 or len(self.pooling) != 3:
            raise ValueError(
                f"widths={self.widths}, growth={self.growth}, pooling={self.pooling} "
                "must be 4, 3 and 3 numbers"
            )

    @property
    def frames_per_latent(self) -> int:
        return self.growth[0] * self.growth[1] * self.growth[2]


class SoftClamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / BOUND) * BOUND


class MemoryBlock(nn.Module):
    """A residual block that also sees its own input one frame earlier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv(2 * width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width)
        )

    def forward(self, x: Frames, before: Frames) -> Frames:
        earlier = torch.cat([before, x[:, :-1]], dim=1)
        seen = torch.cat([x, earlier], dim=2).flatten(0, 1)
        return torch.relu(self.conv(seen).view_as(x) + x)


class Grow(nn.Module):
    """Each frame becomes ``frames`` of them."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(width, width * frames, 1, bias=False)

    def forward(self, x: Frames) -> Frames:
        return in_space(self.conv, x).unflatten(2, (self.frames, -1)).flatten(1, 2)


class Pool(nn.Module):
    """``frames`` frames become one."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(width * frames, width, 1, bias=False)

    def forward(self, x: Frames) -> Frames:
        return in_space(self.conv, x.unflatten(1, (-1, self.frames)).flatten(2, 3))


class Layers(nn.Sequential):
    """One after the other, each memory block with the frame that it saw last; no ``memory`` is zeros."""

    def forward(self, input: Frames, memory: tuple[Tensor, ...] = ()) -> tuple[Frames, tuple[Tensor, ...]]:
        """The result, and the last frame that each memory block saw."""
        x = input
        kept: list[Tensor] = []
        for layer in self:
            if isinstance(layer, MemoryBlock):
                before = memory[len(kept)] if memory else torch.zeros_like(x[:, :1])
                kept.append(x[:, -1:].clone())
                x = layer(x, before)
            elif isinstance(layer, Grow | Pool):
                x = layer(x)
            else:
                x = in_space(layer, x)
        return x, tuple(kept)


class TAEHV(nn.Module):
    """``[B, 1 + 4 (N - 1), 3, H, W]`` pixels in [-1, 1] to latents ``[B, N, 16, H / 8, W / 8]`` and back, for
    a 25th of the arithmetic of Wan's own decoder. Parameters carry the names of its own file.
    """

    def __init__(self, config: TAEHVConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder_width
        down: list[nn.Module] = [conv(3, width), nn.ReLU()]
        for frames in config.pooling:
            down += [Pool(width, frames), nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)]
            down += [MemoryBlock(width) for _ in range(BLOCKS)]
        self.encoder = Layers(*down, conv(width, config.channels))
        up: list[nn.Module] = [SoftClamp(), conv(config.channels, config.widths[0]), nn.ReLU()]
        for inputs, outputs, frames in zip(config.widths, config.widths[1:], config.growth, strict=False):
            up += [MemoryBlock(inputs) for _ in range(BLOCKS)]
            up += [nn.Upsample(scale_factor=2.0), Grow(inputs, frames)]
            up.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
        self.decoder = Layers(*up, nn.ReLU(), conv(config.widths[-1], 3))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def pixel_frames(self, latent_frames: int) -> int:
        return 1 + self.config.frames_per_latent * (latent_frames - 1)

    def memory(self, batch: int, height: int, width: int) -> DecoderMemory:
        """The decoder's state before the first latent frame: none, whatever the sizes."""
        return DecoderMemory((), started=False)

    def decode_chunk(
        self, latents: Float[Tensor, " batch frame channel h w"], memory: DecoderMemory
    ) -> tuple[Float[Tensor, " batch pixel_frame 3 height width"], DecoderMemory]:
        """Pixels of one chunk, and the state with which the next chunk goes on as if there were no seam.

        Of the stream's very first latent frame only the last pixel frame is shown, as Wan's decoder has it.
        """
        # a compiled decoder is compiled for what follows the first chunk, which comes once
        decoder = self.decoder if memory.started else self.decoder.forward
        x, kept = decoder(latents.to(self.dtype), memory.tensors)
        shown = x if memory.started else x[:, self.config.frames_per_latent - 1 :]
        return shown.clamp(0.0, 1.0) * 2.0 - 1.0, DecoderMemory(kept, started=True)

    def decode(
        self, latents: Float[Tensor, " batch frame channel h w"]
    ) -> Float[Tensor, " batch pixel_frame 3 height width"]:
        """Pixels of a whole clip."""
        return self.decode_chunk(latents, self.memory(latents.shape[0], *latents.shape[-2:]))[0]

    def encode(
        self, pixels: Float[Tensor, " batch pixel_frame 3 height width"]
    ) -> Float[Tensor, " batch frame channel h w"]:
        """Latents of a clip; the last frame is repeated up to a whole group, as TAEHV's own code does it."""
        group = self.config.pooling[0] * self.config.pooling[1] * self.config.pooling[2]
        if pixels.shape[3] % STRIDE or pixels.shape[4] % STRIDE:
            raise ValueError(
                f"pixels of shape {tuple(pixels.shape)}: {STRIDE} must divide height and width; crop them"
            )
        x = pixels.to(self.dtype) * 0.5 + 0.5
        missing = -x.shape[1] % group
        x = torch.cat([x, x[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        return self.encoder(x)[0].to(pixels.dtype)


def in_space(layer: nn.Module, x: Frames) -> Frames:
    """Each frame by itself."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
