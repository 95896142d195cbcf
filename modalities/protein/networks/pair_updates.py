"""What changes pairs between blocks: sums of their tokens, and products over the third side of a triangle."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Tokens = Float[Tensor, " batch token dim"]
Pairs = Float[Tensor, " batch row column pair"]
PairMask = Bool[Tensor, " batch row column 1"]

MOST_TRIANGLE_CHANNELS = 196
EXPANSION = 2


class TriangleProduct(nn.Module):
    """AlphaFold 2's triangle multiplication (Jumper et al., 2021; algorithms 11 and 12).

    Args:
        outgoing: whether edges i -> k and j -> k update i -> j; else k -> i and k -> j do.
    """

    def __init__(self, pair_dim: int, *, outgoing: bool) -> None:
        super().__init__()
        self.outgoing = outgoing
        hidden = min(pair_dim, MOST_TRIANGLE_CHANNELS)
        self.linear_a_p = nn.Linear(pair_dim, hidden)
        self.linear_a_g = _gate(pair_dim, hidden)
        self.linear_b_p = nn.Linear(pair_dim, hidden)
        self.linear_b_g = _gate(pair_dim, hidden)
        self.linear_g = _gate(pair_dim, pair_dim)
        self.linear_z = _zero(hidden, pair_dim)
        self.layer_norm_in = nn.LayerNorm(pair_dim)
        self.layer_norm_out = nn.LayerNorm(hidden)

    def forward(self, pairs: Pairs, mask: PairMask) -> Pairs:
        z = self.layer_norm_in(pairs)
        a = self.linear_a_p(z) * torch.sigmoid(self.linear_a_g(z)) * mask
        b = self.linear_b_p(z) * torch.sigmoid(self.linear_b_g(z)) * mask
        a, b = (y.permute(0, 3, 1, 2) for y in (a, b))
        products = a @ b.mT if self.outgoing else a.mT @ b
        updated = self.linear_z(self.layer_norm_out(products.permute(0, 2, 3, 1)))
        return updated * torch.sigmoid(self.linear_g(z))


class PairTransition(nn.Module):
    """A feed-forward layer."""

    def __init__(self, pair_dim: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(pair_dim)
        self.linear_1 = nn.Linear(pair_dim, EXPANSION * pair_dim)
        self.linear_2 = _zero(EXPANSION * pair_dim, pair_dim)

    def forward(self, pairs: Pairs, mask: PairMask) -> Pairs:
        return self.linear_2(torch.relu(self.linear_1(self.layer_norm(pairs)))) * mask


class PairUpdate(nn.Module):
    """Pairs from their two tokens, from triangles if wanted, and through a feed-forward layer."""

    def __init__(self, token_dim: int, pair_dim: int, *, triangles: bool) -> None:
        super().__init__()
        self.layer_norm_in = nn.LayerNorm(token_dim)
        self.linear_x = nn.Linear(token_dim, 2 * pair_dim, bias=False)
        if triangles:
            self.tri_mult_out = TriangleProduct(pair_dim, outgoing=True)
            self.tri_mult_in = TriangleProduct(pair_dim, outgoing=False)
        self.triangles = triangles
        self.transition_out = PairTransition(pair_dim)

    def forward(self, tokens: Tokens, pairs: Pairs, mask: PairMask) -> Pairs:
        by_column, by_row = self.linear_x(self.layer_norm_in(tokens)).chunk(2, dim=-1)
        pairs = (pairs + by_column[:, None] + by_row[:, :, None]) * mask
        steps = (self.tri_mult_out, self.tri_mult_in) if self.triangles else ()
        for step in (*steps, self.transition_out):
            pairs = (pairs + _recomputed(step, pairs, mask)) * mask
        return pairs


def _recomputed(step: nn.Module, pairs: Pairs, mask: PairMask) -> Pairs:
    """The step's output; for a gradient it is computed again, as its tensors would fill the memory."""
    if torch.is_grad_enabled() and pairs.requires_grad:
        return checkpoint(step, pairs, mask, use_reentrant=False)
    return step(pairs, mask)


def _gate(channels: int, out: int) -> nn.Linear:
    """Open at the start."""
    layer = nn.Linear(channels, out)
    nn.init.zeros_(layer.weight)
    nn.init.ones_(layer.bias)
    return layer


def _zero(channels: int, out: int) -> nn.Linear:
    """Zero at the start."""
    layer = nn.Linear(channels, out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
