"""How near designs are to known chains: the greatest TM-score that a search finds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from fewstep.modalities.protein.chains import Chain, checked
from fewstep.modalities.protein.tm_score import tm_scores

POINTS = 20  # along each chain, of the map that the prefilter compares
CANDIDATES = 24  # of the known chains, that are superposed
LONGER, SHORTER = 1.5, 0.7  # of a design's length, that known chains are searched in
CHUNK = 256  # designs whose distances to all known chains are held at once

Maps = Float[np.ndarray, " chain entry"]


@dataclass(frozen=True)
class Nearest:
    """For each design.

    Args:
        tm: TM-score over the design's length with the nearest chain found; lower is more novel.
        number: of that chain among the known ones.
    """

    tm: Float[np.ndarray, " design"]
    number: Int[np.ndarray, " design"]


class KnownChains:
    """Chains to compare with.

    A prefilter keeps those whose distance maps, of evenly spaced points along the chain, are nearest; these
    are superposed. So a score is a lower bound: a known chain that holds a design's fold within a larger one
    may be missed.
    """

    def __init__(self, chains: Sequence[Chain]) -> None:
        if not len(chains):
            raise ValueError("no known chains; give at least one")
        self.chains = list(chains)
        self.sizes = np.array([len(chain) for chain in chains])
        self.maps = distance_maps(chains)

    def nearest(
        self, designs: Sequence[Chain], *, candidates: int = CANDIDATES, device: torch.device | str = "cpu"
    ) -> Nearest:
        """The known chain with the greatest TM-score among the candidates of each design."""
        rows = [row for start in range(0, len(designs), CHUNK) for row in
                self._candidates(designs[start : start + CHUNK], candidates)]  # fmt: skip
        pairs = [(design, int(known)) for design, row in enumerate(rows) for known in row]
        scores = tm_scores(
            [designs[design] for design, _ in pairs],
            [self.chains[known] for _, known in pairs],
            device=device,
        ).by_first
        best, number = np.zeros(len(designs)), np.zeros(len(designs), np.int64)
        for (design, known), score in zip(pairs, scores, strict=True):
            if score > best[design]:
                best[design], number[design] = score, known
        return Nearest(best, number)

    def _candidates(self, designs: Sequence[Chain], count: int) -> list[Int[np.ndarray, " candidate"]]:
        maps = distance_maps(designs)
        apart = (maps**2).sum(1)[:, None] + (self.maps**2).sum(1) - 2 * maps @ self.maps.T
        sizes = np.array([len(design) for design in designs])[:, None]
        fits = (self.sizes <= LONGER * sizes) & (self.sizes >= SHORTER * sizes)
        apart = np.where(fits | ~fits.any(1, keepdims=True), apart, np.inf)
        order = np.argsort(apart, axis=1, kind="stable")[:, :count]
        return [row[np.isfinite(apart[i, row])] for i, row in enumerate(order)]


def distance_maps(chains: Sequence[Chain]) -> Maps:
    """Distances between ``POINTS`` points evenly along each chain, angstrom."""
    checked(chains)
    upper = np.triu_indices(POINTS, 1)
    rows = []
    for chain in chains:
        places = np.linspace(0, len(chain) - 1, POINTS)
        points = np.stack([np.interp(places, np.arange(len(chain)), axis) for axis in chain.T], 1)
        rows.append(np.linalg.norm(points[:, None] - points[None], axis=2)[upper])
    return np.stack(rows)
