"""Transformer blocks over dense grids and over voxels alike, with the parameter names of TRELLIS.

Tokens are ``[batch, token, dim]`` where samples are dense and ``[row, dim]`` where they are packed; the
blocks see neither: whatever depends on it goes through `Rows`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.attention import attention
from fewstep.modalities.shape3d.sparse.attention import (
    attention_to_condition,
    packed_attention,
    windowed_attention,
)
from fewstep.modalities.shape3d.sparse.convolution import Kernel
from fewstep.modalities.shape3d.sparse.tensor import Voxels

BLOCK_EPS = 1e-6
FINAL_EPS = 1e-5
SMALLEST_NORM = 1e-12  # a query or key shorter than this is left as it is
MODULATIONS = 6  # shift, scale and gate, for self-attention and for the feed-forward layer


@runtime_checkable
class Rows(Protocol):
    """How the tokens of a batch lie in memory."""

    def spread(self, values: Float[Tensor, " batch dim"]) -> Tensor:
        """One vector per sample, ready to broadcast against tokens."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention among the tokens of a sample; queries are ``[*tokens, head, head_dim]``."""
        ...

    def attend_to(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention to a condition's tokens ``[batch, token, head, head_dim]``."""
        ...


@dataclass(frozen=True)
class DenseRows:
    """Tokens ``[batch, token, dim]``."""

    def spread(self, values: Tensor) -> Tensor:
        return values[:, None]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v)

    def attend_to(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v)


@dataclass(frozen=True, eq=False)
class VoxelRows:
    """Tokens ``[row, dim]``, one per voxel.

    Args:
        voxels: the voxels.
        window: size and shift of the windows within which they attend to each other; None for everywhere.
    """

    voxels: Voxels
    window: tuple[int, int] | None = None

    def spread(self, values: Tensor) -> Tensor:
        return values if self.voxels.batch_size == 1 else values[self.voxels.index]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.window is None:
            return packed_attention(q, k, v, self.voxels.samples)
        return windowed_attention(q, k, v, self.voxels, *self.window)

    def attend_to(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_to_condition(q, k, v, self.voxels.samples)


class WideLayerNorm(nn.LayerNorm):
    """Over the last dimension, in float32 for half-precision input."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)


def plain_norm(x: Tensor, eps: float) -> Tensor:
    """The same without parameters."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.layer_norm(wide, wide.shape[-1:], eps=eps).to(x.dtype)


class HeadNorm(nn.Module):
    """Queries or keys to the length sqrt(head_dim), then scaled per head and channel."""

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(num_heads, head_dim))

    def forward(self, x: Float[Tensor, " *tokens head head_dim"]) -> Float[Tensor, " *tokens head head_dim"]:
        dim = x.shape[-1]
        wide = x.to(torch.promote_types(self.gamma.dtype, torch.float32))
        return (F.rms_norm(wide, (dim,), eps=SMALLEST_NORM**2 / dim) * self.gamma).to(x.dtype)


class SelfAttention(nn.Module):
    """Among the tokens of a sample or of a window."""

    def __init__(self, channels: int, num_heads: int, *, qk_rms_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(channels, 3 * channels)
        if qk_rms_norm:
            self.q_rms_norm = HeadNorm(num_heads, channels // num_heads)
            self.k_rms_norm = HeadNorm(num_heads, channels // num_heads)
        self.qk_rms_norm = qk_rms_norm
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, " *tokens dim"], rows: Rows) -> Float[Tensor, " *tokens dim"]:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        if self.qk_rms_norm:
            q, k = self.q_rms_norm(q), self.k_rms_norm(k)
        return self.to_out(rows.attend(q, k, v).flatten(-2))


class CrossAttention(nn.Module):
    """To the tokens of a condition."""

    def __init__(self, channels: int, condition_channels: int, num_heads: int, *, qk_rms_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels)
        self.to_kv = nn.Linear(condition_channels, 2 * channels)
        if qk_rms_norm:
            self.q_rms_norm = HeadNorm(num_heads, channels // num_heads)
            self.k_rms_norm = HeadNorm(num_heads, channels // num_heads)
        self.qk_rms_norm = qk_rms_norm
        self.to_out = nn.Linear(channels, channels)

    def forward(
        self,
        x: Float[Tensor, " *tokens dim"],
        condition: Float[Tensor, " batch length condition"],
        rows: Rows,
    ) -> Float[Tensor, " *tokens dim"]:
        q = self.to_q(x).unflatten(-1, (self.num_heads, -1))
        k, v = self.to_kv(condition).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        if self.qk_rms_norm:
            q, k = self.q_rms_norm(q), self.k_rms_norm(k)
        return self.to_out(rows.attend_to(q, k, v).flatten(-2))


class FeedForward(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, channels: int, ratio: int | float) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, channels)
        )

    def forward(self, x: Float[Tensor, " *tokens dim"]) -> Float[Tensor, " *tokens dim"]:
        return self.mlp(x)


class Block(nn.Module):
    """Self-attention and feed-forward layer, both behind norms without parameters."""

    def __init__(self, channels: int, num_heads: int, mlp_ratio: int | float, *, qk_rms_norm: bool) -> None:
        super().__init__()
        self.attn = SelfAttention(channels, num_heads, qk_rms_norm=qk_rms_norm)
        self.mlp = FeedForward(channels, mlp_ratio)

    def forward(self, x: Float[Tensor, " *tokens dim"], rows: Rows) -> Float[Tensor, " *tokens dim"]:
        x = x + self.attn(plain_norm(x, BLOCK_EPS), rows)
        return x + self.mlp(plain_norm(x, BLOCK_EPS))


class ModulatedBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward layer; the time shifts, scales and gates the first and
    the last.

    Args:
        share_mod: whether the modulation is computed outside, once for all blocks.
    """

    def __init__(
        self,
        channels: int,
        condition_channels: int,
        num_heads: int,
        mlp_ratio: int | float,
        *,
        qk_rms_norm: bool,
        qk_rms_norm_cross: bool,
        share_mod: bool,
    ) -> None:
        super().__init__()
        self.norm2 = WideLayerNorm(channels, eps=BLOCK_EPS)
        self.self_attn = SelfAttention(channels, num_heads, qk_rms_norm=qk_rms_norm)
        self.cross_attn = CrossAttention(
            channels, condition_channels, num_heads, qk_rms_norm=qk_rms_norm_cross
        )
        self.mlp = FeedForward(channels, mlp_ratio)
        if not share_mod:
            self.adaLN_modulation = modulation(channels)
        self.share_mod = share_mod

    def forward(
        self,
        x: Float[Tensor, " *tokens dim"],
        time: Float[Tensor, " batch modulation"],
        condition: Float[Tensor, " batch length condition"],
        rows: Rows,
    ) -> Float[Tensor, " *tokens dim"]:
        spread = rows.spread(time if self.share_mod else self.adaLN_modulation(time))
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = spread.chunk(MODULATIONS, dim=-1)
        h = torch.addcmul(shift, plain_norm(x, BLOCK_EPS), 1 + scale)
        x = torch.addcmul(x, self.self_attn(h, rows), gate)
        x = x + self.cross_attn(self.norm2(x), condition, rows)
        h = torch.addcmul(shift_mlp, plain_norm(x, BLOCK_EPS), 1 + scale_mlp)
        return torch.addcmul(x, self.mlp(h), gate_mlp)


def modulation(channels: int) -> nn.Sequential:
    """From the embedded time to shifts, scales and gates; it starts at zero."""
    layer = nn.Linear(channels, MODULATIONS * channels)
    return nn.Sequential(nn.SiLU(), layer)


def initialize(network: nn.Module) -> None:
    """Xavier for linear layers and zeros for what modulates and what ends a network or a residual block."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for name, parameter in network.named_parameters():
        if "adaLN_modulation" in name or name.startswith("out_layer."):
            nn.init.zeros_(parameter)
        elif name in ("t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight"):
            nn.init.normal_(parameter, std=0.02)


def head_count(model_channels: int, num_heads: int | None, num_head_channels: int) -> int:
    """The number of heads, given as such or by their width."""
    heads = num_heads or model_channels // num_head_channels
    if heads < 1 or model_channels % heads:
        raise ValueError(
            f"model_channels={model_channels} must be a multiple of num_heads={heads}; change either"
        )
    return heads


def check_position_mode(pe_mode: str) -> None:
    if pe_mode != "ape":
        raise ValueError(f"pe_mode={pe_mode!r} is not supported; released TRELLIS networks have 'ape'")


def attention_window(
    attn_mode: Literal["full", "swin"], window_size: int, number: int
) -> tuple[int, int] | None:
    """Size and shift of the windows of block ``number``; None for attention over the whole sample."""
    if attn_mode == "full":
        return None
    if attn_mode == "swin":
        return window_size, window_size // 2 * (number % 2)
    raise ValueError(
        f"attn_mode={attn_mode!r} is not supported; released TRELLIS networks have 'full' or 'swin'"
    )


def through(layer: nn.Linear | nn.Conv3d, x: Tensor) -> Tensor:
    """A layer's output for input of any dtype, in the layer's own."""
    return layer(x.to(layer.weight.dtype))


def cast_layers(parts: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """The linear and convolutional layers of some parts in another dtype; norms stay as they are."""
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Conv3d | Kernel):
                module.to(dtype)
