"""A block of the trunk: attention with a bias from pairs of residues, then a gated feed-forward layer."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.attention import attention
from fewstep.modalities.protein.networks.modulation import AdaptiveNorm, Conditions, OutputScale

Tokens = Float[Tensor, " batch token dim"]
Pairs = Float[Tensor, " batch row column pair"]
Bias = Float[Tensor, " batch head token token"]

EXPANSION = 4  # of the feed-forward layers in the trunk


class SwiGLU(nn.Module):
    """The first half of the channels times the gated second."""

    def forward(self, x: Float[Tensor, " *token double"]) -> Float[Tensor, " *token dim"]:
        value, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class Transition(nn.Module):
    """A gated feed-forward layer, without norm and residual."""

    def __init__(self, dim: int, expansion: int) -> None:
        super().__init__()
        hidden = dim * expansion
        self.swish_linear = nn.Sequential(nn.Linear(dim, 2 * hidden, bias=False), SwiGLU())
        self.linear_out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, " *token dim"]) -> Float[Tensor, " *token dim"]:
        return self.linear_out(self.swish_linear(x))


class PairBiasAttention(nn.Module):
    """Gated attention; `pair_norm` and `to_bias` work in `attention_biases`, for all blocks at once."""

    def __init__(self, dim: int, pair_dim: int, num_heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_g = nn.Linear(dim, dim)
        self.to_out_node = nn.Linear(dim, dim)
        self.node_norm = nn.LayerNorm(dim)
        self.q_layer_norm = nn.LayerNorm(dim) if qk_norm else nn.Identity()
        self.k_layer_norm = nn.LayerNorm(dim) if qk_norm else nn.Identity()
        self.to_bias = nn.Linear(pair_dim, num_heads, bias=False)
        self.pair_norm = nn.LayerNorm(pair_dim)

    def forward(self, x: Tokens, bias: Bias) -> Tokens:
        x = self.node_norm(x)
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        heads = (self.num_heads, -1)
        q, k, v = (y.unflatten(-1, heads) for y in (self.q_layer_norm(q), self.k_layer_norm(k), v))
        attended = attention(q, k, v, mask=bias.to(q.dtype))
        return self.to_out_node(torch.sigmoid(self.to_g(x)) * attended.flatten(-2))


class AdaptiveAttention(nn.Module):
    """Attention between an adaptive norm and a gate."""

    def __init__(self, dim: int, pair_dim: int, cond_dim: int, num_heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.adaln = AdaptiveNorm(dim, cond_dim)
        self.mha = PairBiasAttention(dim, pair_dim, num_heads, qk_norm=qk_norm)
        self.scale_output = OutputScale(dim, cond_dim)

    def forward(self, x: Tokens, bias: Bias, conditions: Conditions) -> Tokens:
        return self.scale_output(self.mha(self.adaln(x, conditions), bias), conditions)


class AdaptiveTransition(nn.Module):
    """A feed-forward layer between an adaptive norm and a gate."""

    def __init__(self, dim: int, cond_dim: int) -> None:
        super().__init__()
        self.adaln = AdaptiveNorm(dim, cond_dim)
        self.transition = Transition(dim, EXPANSION)
        self.scale_output = OutputScale(dim, cond_dim)

    def forward(self, x: Tokens, conditions: Conditions) -> Tokens:
        return self.scale_output(self.transition(self.adaln(x, conditions)), conditions)


class Block(nn.Module):
    """Both, one after the other, each added to its input."""

    def __init__(self, dim: int, pair_dim: int, cond_dim: int, num_heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.mhba = AdaptiveAttention(dim, pair_dim, cond_dim, num_heads, qk_norm=qk_norm)
        self.transition = AdaptiveTransition(dim, cond_dim)

    def forward(self, x: Tokens, bias: Bias, conditions: Conditions) -> Tokens:
        x = x + self.mhba(x, bias, conditions)
        return x + self.transition(x, conditions)


def attention_biases(
    pairs: Pairs, blocks: Sequence[Block], mask: Bool[Tensor, " batch token"]
) -> Sequence[Bias]:
    """What is added to the logits of each block that sees these pairs, tokens that are not real excluded.

    All blocks normalise the same pairs, so one norm and one matrix product serve them, with the gains and
    shifts of their norms folded into their weights. Tokens before those that ``pairs`` cover are registers,
    whose pairs are zero.
    """
    layers = [block.mhba.mha for block in blocks]
    weight = torch.cat([layer.to_bias.weight * layer.pair_norm.weight for layer in layers])
    shift = torch.cat([layer.to_bias.weight @ layer.pair_norm.bias for layer in layers])
    batch, covered = pairs.shape[:2]
    registers = mask.shape[1] - covered
    normed = F.layer_norm(pairs, pairs.shape[-1:]).flatten(1, 2)
    products = (weight.to(normed.dtype) @ normed.mT).view(batch, -1, covered, covered)
    excluded = torch.zeros_like(mask, dtype=products.dtype).masked_fill(~mask, lowest(products.dtype))
    floor = shift[:, None, None].to(products.dtype) + excluded[:, None, None]
    biases = F.pad(products, (registers, 0, registers, 0)) + floor
    return biases.unflatten(1, (len(layers), -1)).unbind(1)


def lowest(dtype: torch.dtype) -> float:
    """A logit that no softmax sees, yet so far from the end of the range that adding to it stays finite."""
    return torch.finfo(dtype).min / 2
