"""Autoencoder of occupancy grids (TRELLIS, arXiv 2412.01506), dense convolutions throughout.

Axis names: ``x y z`` of the grid, smaller by 2 per level in latents.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.modalities.shape3d.networks.blocks import FINAL_EPS, cast_layers, through

Grid = Float[Tensor, " batch channel x y z"]


@dataclass(frozen=True, kw_only=True)
class StructureEncoderConfig:
    """Sizes of a ``StructureEncoder``; the defaults are those of TRELLIS.

    Args:
        channels: of each level, finest first.
        num_res_blocks: per level.
        norm_type: only "layer", over channels.
        use_fp16: whether the torso computes and is stored in half precision.
    """

    in_channels: int = 1
    latent_channels: int = 8
    num_res_blocks: int = 2
    channels: tuple[int, ...] = (32, 128, 512)
    num_res_blocks_middle: int = 2
    norm_type: str = "layer"
    use_fp16: bool = False

    def __post_init__(self) -> None:
        _check_norm(self.norm_type)


@dataclass(frozen=True, kw_only=True)
class StructureDecoderConfig:
    """Sizes of a ``StructureDecoder``; as those of the encoder, with the coarsest level first."""

    out_channels: int = 1
    latent_channels: int = 8
    num_res_blocks: int = 2
    channels: tuple[int, ...] = (512, 128, 32)
    num_res_blocks_middle: int = 2
    norm_type: str = "layer"
    use_fp16: bool = False

    def __post_init__(self) -> None:
        _check_norm(self.norm_type)


def _check_norm(norm_type: str) -> None:
    if norm_type != "layer":
        raise ValueError(f"norm_type={norm_type!r} is not supported; released TRELLIS networks have 'layer'")


class ChannelLayerNorm(nn.LayerNorm):
    """Over the channels of each place, in float32 for half-precision input."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=FINAL_EPS)

    def forward(self, input: Grid) -> Grid:
        last = input.movedim(1, -1).to(self.weight.dtype)
        return super().forward(last).to(input.dtype).movedim(-1, 1)


class ResBlock(nn.Module):
    """Norm, SiLU and convolution, twice, beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelLayerNorm(channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = ChannelLayerNorm(channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Grid) -> Grid:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Downsample(nn.Module):
    """Half the resolution by a convolution with stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 2, stride=2)

    def forward(self, x: Grid) -> Float[Tensor, " batch other u v w"]:
        return self.conv(x)


class Upsample(nn.Module):
    """Twice the resolution: a convolution to eight times the channels, which become the halves of a voxel."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, 8 * out_channels, 3, padding=1)

    def forward(self, x: Grid) -> Float[Tensor, " batch other u v w"]:
        h = self.conv(x)
        batch, _, *sides = h.shape
        halves = h.view(batch, -1, 2, 2, 2, *sides).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return halves.reshape(batch, -1, *(2 * side for side in sides))


def _torso_dtype(network: nn.Module) -> torch.dtype:
    return network.get_parameter("middle_block.0.conv1.weight").dtype


class StructureEncoder(nn.Module):
    """Occupancy ``[B, 1, R, R, R]`` to the mean and the log variance of latents."""

    def __init__(self, config: StructureEncoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.input_layer = nn.Conv3d(config.in_channels, channels[0], 3, padding=1)
        levels: list[nn.Module] = []
        for level, width in enumerate(channels):
            levels += [ResBlock(width) for _ in range(config.num_res_blocks)]
            if level + 1 < len(channels):
                levels.append(Downsample(width, channels[level + 1]))
        self.blocks = nn.ModuleList(levels)
        self.middle_block = nn.Sequential(
            *[ResBlock(channels[-1]) for _ in range(config.num_res_blocks_middle)]
        )
        self.out_layer = nn.Sequential(
            ChannelLayerNorm(channels[-1]),
            nn.SiLU(),
            nn.Conv3d(channels[-1], 2 * config.latent_channels, 3, padding=1),
        )
        if config.use_fp16:
            self.cast_torso(torch.float16)

    def cast_torso(self, dtype: torch.dtype) -> None:
        """Convolutions between the first and the last layer in another dtype."""
        cast_layers([self.blocks, self.middle_block], dtype)

    def forward(
        self, occupancy: Grid
    ) -> tuple[Float[Tensor, " batch latent u v w"], Float[Tensor, " batch latent u v w"]]:
        h = through(self.input_layer, occupancy.contiguous(memory_format=torch.channels_last_3d))
        h = h.to(_torso_dtype(self))
        for block in self.blocks:
            h = block(h)
        h = self.middle_block(h).to(self.input_layer.weight.dtype)
        mean, logvar = self.out_layer(h).to(occupancy.dtype).chunk(2, dim=1)
        return mean, logvar


class StructureDecoder(nn.Module):
    """Latents to the logits of occupancy."""

    def __init__(self, config: StructureDecoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.input_layer = nn.Conv3d(config.latent_channels, channels[0], 3, padding=1)
        self.middle_block = nn.Sequential(
            *[ResBlock(channels[0]) for _ in range(config.num_res_blocks_middle)]
        )
        levels: list[nn.Module] = []
        for level, width in enumerate(channels):
            levels += [ResBlock(width) for _ in range(config.num_res_blocks)]
            if level + 1 < len(channels):
                levels.append(Upsample(width, channels[level + 1]))
        self.blocks = nn.ModuleList(levels)
        self.out_layer = nn.Sequential(
            ChannelLayerNorm(channels[-1]),
            nn.SiLU(),
            nn.Conv3d(channels[-1], config.out_channels, 3, padding=1),
        )
        if config.use_fp16:
            self.cast_torso(torch.float16)

    def cast_torso(self, dtype: torch.dtype) -> None:
        """Convolutions between the first and the last layer in another dtype."""
        cast_layers([self.blocks, self.middle_block], dtype)

    def forward(self, latents: Grid) -> Float[Tensor, " batch logit u v w"]:
        h = through(self.input_layer, latents.contiguous(memory_format=torch.channels_last_3d))
        h = self.middle_block(h.to(_torso_dtype(self)))
        for block in self.blocks:
            h = block(h)
        return self.out_layer(h.to(self.input_layer.weight.dtype)).to(latents.dtype)
