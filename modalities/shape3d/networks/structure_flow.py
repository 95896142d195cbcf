"""The flow that decides which voxels are active: a dense transformer (TRELLIS, arXiv 2412.01506)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.modalities.shape3d.networks.blocks import (
    FINAL_EPS,
    DenseRows,
    ModulatedBlock,
    cast_layers,
    check_position_mode,
    head_count,
    initialize,
    modulation,
    plain_norm,
    through,
)
from fewstep.modalities.shape3d.networks.embedding import TimestepEmbedder, absolute_positions, grid_places


@dataclass(frozen=True, kw_only=True)
class StructureFlowConfig:
    """Sizes of a ``StructureFlow``; the defaults are those of TRELLIS image-large.

    Args:
        resolution: of the latents along an axis.
        num_heads: given as such or, where None, by ``num_head_channels``.
        patch_size: of the latents' places that become one token, along an axis.
        share_mod: one modulation for all blocks.
        qk_rms_norm: normalise queries and keys of self-attention; ``qk_rms_norm_cross`` of the other.
        use_fp16: whether the blocks compute and are stored in half precision.
    """

    resolution: int = 16
    in_channels: int = 8
    model_channels: int = 1024
    cond_channels: int = 1024
    out_channels: int = 8
    num_blocks: int = 24
    num_heads: int | None = 16
    num_head_channels: int = 64
    mlp_ratio: int | float = 4.0
    patch_size: int = 1
    pe_mode: str = "ape"
    share_mod: bool = False
    qk_rms_norm: bool = True
    qk_rms_norm_cross: bool = False
    use_fp16: bool = False

    def __post_init__(self) -> None:
        head_count(self.model_channels, self.num_heads, self.num_head_channels)
        check_position_mode(self.pe_mode)
        if self.resolution % self.patch_size:
            raise ValueError(
                f"resolution={self.resolution} must be a multiple of patch_size={self.patch_size}"
            )


class StructureFlow(nn.Module):
    """Velocity of noised latents ``[B, C, r, r, r]`` on the linear path, given the tokens of a condition."""

    pos_emb: Tensor

    def __init__(self, config: StructureFlowConfig) -> None:
        super().__init__()
        self.config = config
        channels, patch = config.model_channels, config.patch_size
        heads = head_count(channels, config.num_heads, config.num_head_channels)
        self.t_embedder = TimestepEmbedder(channels)
        if config.share_mod:
            self.adaLN_modulation = modulation(channels)
        side = config.resolution // patch
        self.register_buffer("pos_emb", absolute_positions(grid_places(side), side, channels))
        self.input_layer = nn.Linear(config.in_channels * patch**3, channels)
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
        self.out_layer = nn.Linear(channels, config.out_channels * patch**3)
        initialize(self)
        if config.use_fp16:
            self.cast_torso(torch.float16)

    def cast_torso(self, dtype: torch.dtype) -> None:
        """Layers of the blocks in another dtype."""
        cast_layers([self.blocks], dtype)

    def forward(
        self,
        x_t: Float[Tensor, " batch channel x y z"],
        t: Float[Tensor, " batch"],
        condition: Float[Tensor, " batch length condition"],
    ) -> Float[Tensor, " batch out x y z"]:
        dtype = self.get_parameter("blocks.0.mlp.mlp.0.weight").dtype
        h = (through(self.input_layer, self._patches(x_t)) + self.pos_emb).to(dtype)
        time = self.t_embedder(t)
        time = (self.adaLN_modulation(time) if self.config.share_mod else time).to(dtype)
        for block in self.blocks:
            h = block(h, time, condition.to(dtype), DenseRows())
        out = through(self.out_layer, plain_norm(h.to(x_t.dtype), FINAL_EPS)).to(x_t.dtype)
        return self._unpatched(out, x_t.shape[-1] // self.config.patch_size)

    def _patches(self, x: Tensor) -> Float[Tensor, " batch token value"]:
        p = self.config.patch_size
        split = x.unflatten(4, (-1, p)).unflatten(3, (-1, p)).unflatten(2, (-1, p))
        return split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)

    def _unpatched(self, tokens: Tensor, side: int) -> Tensor:
        p = self.config.patch_size
        split = tokens.unflatten(2, (-1, p, p, p)).unflatten(1, (side, side, side))
        return split.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6).flatten(4, 5).flatten(2, 3)
