"""Pairs of residues: their distance along the chain and in space, normalised under the time."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.modalities.protein.networks.modulation import AdaptiveNorm

Coordinates = Float[Tensor, " batch residue 3"]
Pairs = Float[Tensor, " batch row column pair"]

NEAREST, FARTHEST = 0.1, 3.0  # nanometre: where the first bin of distances ends and the last begins


class PairFeatures(nn.Module):
    """The linear layer and norm of Proteina's pair ``init_repr_factory``.

    Every feature of a pair is one of some bins, so the product with its one-hot row is a look-up.
    """

    def __init__(self, separation_bins: int, self_condition_bins: int, distance_bins: int, dim: int) -> None:
        super().__init__()
        self.sizes = (separation_bins, self_condition_bins, distance_bins)
        self.ln_out = nn.LayerNorm(dim)
        self.linear_out = nn.Linear(sum(self.sizes), dim, bias=False)

    def forward(self, x_t: Coordinates, self_condition: Coordinates | None) -> Pairs:
        by_separation, by_told, table = self.linear_out.weight.t().split(self.sizes)
        bins = distance_bins(x_t, self.sizes[2])
        if self_condition is not None:
            # one look-up in all sums of two rows: passing over all pairs is what takes the time
            bins = bins * self.sizes[1] + distance_bins(self_condition, self.sizes[1])
            table = (table[:, None] + by_told).flatten(0, 1)
        along = F.embedding(separations(x_t.shape[1], self.sizes[0], x_t.device), by_separation)
        return self.ln_out(F.embedding(bins, table).add_(along))


class TimeFeatures(nn.Module):
    """The linear layer and norm of Proteina's pair ``cond_factory``, once per sample."""

    def __init__(self, time_dim: int, dim: int) -> None:
        super().__init__()
        self.ln_out = nn.LayerNorm(dim)
        self.linear_out = nn.Linear(time_dim, dim, bias=False)

    def forward(self, embedded: Float[Tensor, " batch time"]) -> Float[Tensor, " batch dim"]:
        return self.ln_out(self.linear_out(embedded))


class PairBuilder(nn.Module):
    """Pairs before the trunk; those with a residue that is not real hold finite numbers without meaning."""

    def __init__(self, bins: tuple[int, int, int], pair_dim: int, cond_dim: int, time_dim: int) -> None:
        super().__init__()
        self.init_repr_factory = PairFeatures(*bins, pair_dim)
        self.cond_factory = TimeFeatures(time_dim, cond_dim)
        self.adaln = AdaptiveNorm(pair_dim, cond_dim)

    def forward(
        self, x_t: Coordinates, self_condition: Coordinates | None, embedded: Float[Tensor, " batch time"]
    ) -> Pairs:
        pairs = self.init_repr_factory(x_t, self_condition)
        gain, shift = self.adaln.gain_and_shift(self.cond_factory(embedded))
        normed = F.layer_norm(pairs, pairs.shape[-1:])
        return torch.addcmul(shift[:, None, None], normed, gain[:, None, None])


def separations(residues: int, bins: int, device: torch.device) -> Int[Tensor, " row column"]:
    """Bins of i - j: one for each number, and the two last for all beyond."""
    places = torch.arange(residues, device=device)
    middle = bins // 2
    return (places[:, None] - places).clamp(-middle, middle) + middle


def distance_bins(x: Coordinates, bins: int) -> Int[Tensor, " batch row column"]:
    """Bins of distances in nanometre, those closer than ``NEAREST`` in the first; no gradient."""
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    distances = torch.linalg.vector_norm(x[:, :, None] - x[:, None], dim=-1)
    edges = torch.linspace(NEAREST, FARTHEST, bins - 1, dtype=x.dtype, device=x.device)
    return torch.bucketize(distances, edges)
