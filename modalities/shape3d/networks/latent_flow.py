"""The flow that fills active voxels with latents: a transformer over voxels (TRELLIS, arXiv 2412.01506)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.modalities.shape3d.networks.blocks import (
    BLOCK_EPS,
    FINAL_EPS,
    ModulatedBlock,
    VoxelRows,
    WideLayerNorm,
    cast_layers,
    check_position_mode,
    head_count,
    initialize,
    modulation,
    plain_norm,
    through,
)
from fewstep.modalities.shape3d.networks.embedding import TimestepEmbedder, absolute_positions
from fewstep.modalities.shape3d.sparse.convolution import SubmanifoldConv3d
from fewstep.modalities.shape3d.sparse.resampling import downsample, upsample
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor, Voxels


@dataclass(frozen=True, kw_only=True)
class LatentFlowConfig:
    """Sizes of a ``LatentFlow``; the defaults are those of TRELLIS image-large.

    Args:
        resolution: voxels along an axis.
        num_heads: given as such or, where None, by ``num_head_channels``.
        patch_size: voxels along the edge of what the transformer sees as one token, a power of 2.
        num_io_res_blocks: residual blocks per halving, on the way in and on the way out.
        io_block_channels: of each halving; none where ``patch_size`` is 1.
        use_skip_connection: whether the way out sees the features of the way in.
        share_mod: one modulation for all blocks.
        qk_rms_norm: normalise queries and keys of self-attention; ``qk_rms_norm_cross`` of the other.
        use_fp16: whether all blocks compute and are stored in half precision.
        pool_include_self: see ``downsample``; released weights need it.
    """

    resolution: int = 64
    in_channels: int = 8
    model_channels: int = 1024
    cond_channels: int = 1024
    out_channels: int = 8
    num_blocks: int = 24
    num_heads: int | None = 16
    num_head_channels: int = 64
    mlp_ratio: int | float = 4.0
    patch_size: int = 2
    num_io_res_blocks: int = 2
    io_block_channels: tuple[int, ...] = (128,)
    pe_mode: str = "ape"
    use_skip_connection: bool = True
    share_mod: bool = False
    qk_rms_norm: bool = True
    qk_rms_norm_cross: bool = False
    use_fp16: bool = False
    pool_include_self: bool = True

    def __post_init__(self) -> None:
        head_count(self.model_channels, self.num_heads, self.num_head_channels)
        check_position_mode(self.pe_mode)
        if 2 ** len(self.io_block_channels) != self.patch_size:
            raise ValueError(
                f"io_block_channels={self.io_block_channels} must have one entry per halving, of which "
                f"patch_size={self.patch_size} is to be the product"
            )


class ResBlock(nn.Module):
    """Two sparse convolutions, modulated by the time, beside the identity; first it may change the level."""

    def __init__(
        self,
        channels: int,
        time_channels: int,
        out_channels: int,
        *,
        resample: Literal["down", "up"] | None = None,
        pool_include_self: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = WideLayerNorm(channels, eps=BLOCK_EPS)
        self.conv1 = SubmanifoldConv3d(channels, out_channels)
        self.conv2 = SubmanifoldConv3d(out_channels, out_channels)
        nn.init.zeros_(self.conv2.conv.weight)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, 2 * out_channels))
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Linear(channels, out_channels)
        )
        self.resample = resample
        self.pool_include_self = pool_include_self

    def forward(
        self, x: SparseTensor, time: Float[Tensor, " batch dim"], fine: Voxels | None = None
    ) -> SparseTensor:
        """``fine`` are the voxels to go up to."""
        if self.resample == "down":
            x = downsample(x, pool_include_self=self.pool_include_self)
        elif self.resample == "up" and fine is not None:
            x = upsample(x, fine)
        scale, shift = x.spread(self.emb_layers(time)).chunk(2, dim=1)
        h = self.conv1(x.replace(F.silu(self.norm1(x.feats)))).feats
        h = F.silu(torch.addcmul(shift, plain_norm(h, BLOCK_EPS), 1 + scale))
        return x.replace(self.conv2(x.replace(h)).feats + self.skip_connection(x.feats))


class LatentFlow(nn.Module):
    """Velocity of the noised latents of active voxels on the linear path, given a condition's tokens."""

    def __init__(self, config: LatentFlowConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.model_channels
        outermost = (*config.io_block_channels, channels)[0]
        heads = head_count(channels, config.num_heads, config.num_head_channels)
        self.t_embedder = TimestepEmbedder(channels)
        if config.share_mod:
            self.adaLN_modulation = modulation(channels)
        self.input_layer = nn.Linear(config.in_channels, outermost)
        self.input_blocks = nn.ModuleList(_input_blocks(config))
        self.blocks = nn.ModuleList(
            ModulatedBlock(
                channels,
                config.cond_channels,
                heads,
                config.mlp_ratio,
                qk_rms_norm=config.qk_rms_norm,
                qk_rms_norm_cross=config.qk_rms_norm_cross,
                share_mod=config.share_mod,
            )
            for _ in range(config.num_blocks)
        )
        self.out_blocks = nn.ModuleList(_out_blocks(config))
        self.out_layer = nn.Linear(outermost, config.out_channels)
        initialize(self)
        if config.use_fp16:
            self.cast_torso(torch.float16)

    def cast_torso(self, dtype: torch.dtype) -> None:
        """Layers of all blocks in another dtype."""
        cast_layers([self.input_blocks, self.blocks, self.out_blocks], dtype)

    def forward(
        self,
        x: SparseTensor,
        t: Float[Tensor, " batch"],
        condition: Float[Tensor, " batch length condition"],
    ) -> SparseTensor:
        """Velocities on the voxels of ``x``, whose features are the noised latents ``[voxel, channel]``."""
        dtype = self.get_parameter("blocks.0.mlp.mlp.0.weight").dtype
        time = self.t_embedder(t)
        time = (self.adaLN_modulation(time) if self.config.share_mod else time).to(dtype)
        h, skips = x.replace(through(self.input_layer, x.feats).to(dtype)), list[SparseTensor]()
        levels = [x.voxels]
        for block in self.input_blocks:
            h = block(h, time)
            skips.append(h)
            if h.voxels is not levels[-1]:
                levels.append(h.voxels)
        places = absolute_positions(h.coords[:, 1:], h.resolution, h.feats.shape[1])
        feats, rows = h.feats + places.to(dtype), VoxelRows(h.voxels)
        for block in self.blocks:
            feats = block(feats, time, condition.to(dtype), rows)
        h = self._out(h.replace(feats), time, skips, levels)
        out = through(self.out_layer, plain_norm(h.feats.to(x.feats.dtype), FINAL_EPS))
        return h.replace(out.to(x.feats.dtype))

    def _out(
        self, h: SparseTensor, time: Tensor, skips: list[SparseTensor], levels: list[Voxels]
    ) -> SparseTensor:
        finer = {id(coarse): fine for fine, coarse in pairwise(levels)}
        for block, skip in zip(self.out_blocks, reversed(skips), strict=True):
            if self.config.use_skip_connection:
                h = h.replace(torch.cat([h.feats, skip.feats], 1))
            h = block(h, time, finer.get(id(h.voxels)))
        return h


def _input_blocks(config: LatentFlowConfig) -> Iterator[ResBlock]:
    channels, pool = config.model_channels, config.pool_include_self
    for width, wider in pairwise((*config.io_block_channels, channels)):
        for _ in range(config.num_io_res_blocks - 1):
            yield ResBlock(width, channels, width)
        yield ResBlock(width, channels, wider, resample="down", pool_include_self=pool)


def _out_blocks(config: LatentFlowConfig) -> Iterator[ResBlock]:
    channels, joined = config.model_channels, 2 if config.use_skip_connection else 1
    for wider, width in pairwise((channels, *reversed(config.io_block_channels))):
        yield ResBlock(joined * wider, channels, width, resample="up")
        for _ in range(config.num_io_res_blocks - 1):
            yield ResBlock(joined * width, channels, width)
