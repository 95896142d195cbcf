"""Wan 2.1's causal video autoencoder (arXiv 2503.20314), streaming in both directions without seams."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.modalities.video.codec import STRIDE
from fewstep.modalities.video.streaming_codec import DecoderMemory
from fewstep.modalities.video.wan_vae_layers import (
    CausalConv3d,
    ChannelNorm,
    Downsample,
    FrameAttention,
    Frames,
    History,
    ResidualBlock,
    Upsample,
    run,
)

AT_ONCE = 3  # latent frames decoded in one pass: a chunk of the released students
LEVELS = 4  # resolutions, so three times half the size: STRIDE
LATENTS_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENTS_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WanVAEConfig:
    """Sizes of a ``WanVAE``; the defaults are those of Wan 2.1.

    Args:
        width: channels at full resolution.
        channels: of the latents.
        multipliers: of ``width``, from full resolution down.
        blocks: residual blocks per resolution in the encoder; the decoder has one more.
        halves_time: where frames are halved too, from full resolution down.
        mean: of each channel of the latents, over Wan's training data.
        std: likewise.
    """

    width: int = 96
    channels: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    halves_time: tuple[bool, ...] = (False, True, True)
    mean: tuple[int | float, ...] = LATENTS_MEAN
    std: tuple[int | float, ...] = LATENTS_STD

    def __post_init__(self) -> None:
        if len(self.multipliers) != LEVELS or len(self.halves_time) != LEVELS - 1:
            raise ValueError(
                f"multipliers={self.multipliers} must be {LEVELS}, halves_time={self.halves_time} one fewer"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise ValueError(
                f"mean and std must have one entry for each of the {self.channels} channels, std above 0"
            )

    @property
    def frames_per_latent(self) -> int:
        return 2 ** sum(self.halves_time)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution, from full resolution down."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)


class Encoder(nn.Module):
    """Pixels to mean and log-variance, before the last 1x1 convolution."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = (config.width, *config.widths)
        layers: list[nn.Module] = []
        for level, (inputs, outputs) in enumerate(pairwise(widths)):
            layers += _blocks(inputs, outputs, config.blocks)
            if level < LEVELS - 1:
                layers.append(Downsample(outputs, time=config.halves_time[level]))
        self.conv1 = CausalConv3d(3, config.width, 3, frames=3)
        self.downsamples = nn.Sequential(*layers)
        self.middle = _middle(widths[-1])
        self.head = _head(widths[-1], 2 * config.channels)

    def forward(self, x: Frames, history: History) -> Frames:
        return run(self, x, history)


class Decoder(nn.Module):
    """Latents, after the first 1x1 convolution, to pixels."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = (config.widths[-1], *config.widths[::-1])
        layers: list[nn.Module] = []
        for level, (before, outputs) in enumerate(pairwise(widths)):
            inputs = before if level == 0 else before // 2  # an Upsample halves them
            layers += _blocks(inputs, outputs, config.blocks + 1)
            if level < LEVELS - 1:
                layers.append(Upsample(outputs, time=config.halves_time[::-1][level]))
        self.conv1 = CausalConv3d(config.channels, widths[0], 3, frames=3)
        self.middle = _middle(widths[0])
        self.upsamples = nn.Sequential(*layers)
        self.head = _head(config.width * config.multipliers[0], 3)

    def forward(self, x: Frames, history: History) -> Frames:
        return run(self, x, history)


class WanVAE(nn.Module):
    """``[B, 1 + 4 (N - 1), 3, H, W]`` pixels in [-1, 1] to normalised latents ``[B, N, 16, H / 8, W / 8]``
    and back. Parameters carry the names of Wan's own file.
    """

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * config.channels, 2 * config.channels, 1, frames=1)
        self.conv2 = CausalConv3d(config.channels, config.channels, 1, frames=1)
        self.decoder = Decoder(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.conv2.weight.dtype

    def pixel_frames(self, latent_frames: int) -> int:
        return 1 + self.config.frames_per_latent * (latent_frames - 1)

    def memory(self, batch: int, height: int, width: int) -> DecoderMemory:
        """The decoder's state before the first latent frame: none, whatever the sizes."""
        return DecoderMemory((), started=False)

    def decode_chunk(
        self, latents: Float[Tensor, " batch frame channel h w"], memory: DecoderMemory
    ) -> tuple[Float[Tensor, " batch pixel_frame 3 height width"], DecoderMemory]:
        """Pixels of one chunk, and the state with which the next chunk goes on as if there were no seam.

        The stream's very first latent frame gives one pixel frame, every other one four.
        """
        mean, std = self._statistics(latents)
        z = self.conv2((latents.to(mean.dtype) * std + mean).to(self.dtype).transpose(1, 2))
        kept, pixels = memory.tensors if memory.started else None, []
        for part in _parts(z, first=not memory.started, group=AT_ONCE):
            history = History(kept)
            # a compiled decoder is compiled for whole chunks alone: what is shorter comes once, at the start
            decoder = self.decoder if kept and part.shape[2] == AT_ONCE else self.decoder.forward
            pixels.append(decoder(part, history))
            kept = history.new
        out = torch.cat(pixels, 2).clamp(-1.0, 1.0).transpose(1, 2)
        return out, DecoderMemory(tuple(kept or ()), started=True)

    def decode(
        self, latents: Float[Tensor, " batch frame channel h w"]
    ) -> Float[Tensor, " batch pixel_frame 3 height width"]:
        """Pixels of a whole clip."""
        return self.decode_chunk(latents, self.memory(latents.shape[0], *latents.shape[-2:]))[0]

    def encode(
        self, pixels: Float[Tensor, " batch pixel_frame 3 height width"]
    ) -> Float[Tensor, " batch frame channel h w"]:
        """The mode of the latents of one frame and then of whole groups of four.

        Raises:
            ValueError: for other numbers of frames, and sizes that 8 does not divide.
        """
        group = self.config.frames_per_latent
        if (pixels.shape[1] - 1) % group or pixels.shape[3] % STRIDE or pixels.shape[4] % STRIDE:
            raise ValueError(
                f"pixels of shape {tuple(pixels.shape)}: frames must be 1 more than a multiple of {group}, "
                f"height and width multiples of {STRIDE}; crop them"
            )
        x = pixels.to(self.dtype).transpose(1, 2)
        kept, parts = None, []
        for part in _parts(x, first=True, group=group):
            history = History(kept)
            parts.append(self.encoder(part, history))
            kept = history.new
        z = self.conv1(torch.cat(parts, 2)).chunk(2, dim=1)[0].transpose(1, 2)
        mean, std = self._statistics(pixels)
        return ((z.to(mean.dtype) - mean) / std).to(pixels.dtype)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        mean, std = (
            torch.tensor(values, dtype=wide, device=like.device).view(-1, 1, 1)
            for values in (self.config.mean, self.config.std)
        )
        return mean, std


def _parts(x: Frames, *, first: bool, group: int) -> list[Frames]:
    """The very first frame by itself, and then so many at once, for the memory's sake."""
    head, rest = x.tensor_split([1 if first else 0], dim=2)
    return [part for part in (head, *rest.split(group, dim=2)) if part.shape[2]]


def _blocks(inputs: int, outputs: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(inputs if block == 0 else outputs, outputs) for block in range(count)]


def _middle(width: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(width, width), FrameAttention(width), ResidualBlock(width, width))


def _head(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(ChannelNorm(inputs, axes=3), nn.SiLU(), CausalConv3d(inputs, outputs, 3, frames=3))
