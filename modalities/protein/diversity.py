"""How different designs are from each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int

from fewstep.modalities.protein.chains import Chain
from fewstep.modalities.protein.tm_score import tm_scores

SAME_FOLD = 0.5  # TM-score, beyond which chains mostly share a fold (Xu and Zhang, 2010)

Scores = Float[np.ndarray, " chain chain"]


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Of a set of chains.

    Args:
        mean_tm: mean TM-score of two of them, the mean of both normalisations; lower is more diverse.
        clusters: groups of chains that share a fold with their group's centre.
        share: clusters per chain; 1 is all different, near 0 collapse.
    """

    mean_tm: float
    clusters: int
    share: float


def pairwise_tm(chains: Sequence[Chain], *, device: torch.device | str = "cpu") -> Scores:
    """TM-score of each with each, the mean of both normalisations; 1 with itself."""
    pairs = list(combinations(range(len(chains)), 2))
    found = np.eye(len(chains))
    if pairs:
        first, second = np.array(pairs).T
        scores = tm_scores([chains[i] for i in first], [chains[i] for i in second], device=device).mean
        found[first, second] = found[second, first] = scores
    return found


def clusters(scores: Scores, *, threshold: float = SAME_FOLD) -> Int[np.ndarray, " chain"]:
    """The centre of each chain's cluster: the chain with most others near it takes them, and so on."""
    near = scores >= threshold
    centre = np.full(len(scores), -1)
    while (centre < 0).any():
        free = centre < 0
        taking = int(np.where(free, (near & free).sum(1), -1).argmax())
        centre[free & near[taking]] = taking
        centre[taking] = taking
    return centre


def diversity(
    chains: Sequence[Chain], *, threshold: float = SAME_FOLD, device: torch.device | str = "cpu"
) -> Diversity:
    """All of it; takes a time that grows with the square of their number.

    Raises:
        ValueError: for fewer than two chains.
    """
    if len(chains) < 2:
        raise ValueError(f"{len(chains)} chains have no diversity; give at least two")
    scores = pairwise_tm(chains, device=device)
    count = len(np.unique(clusters(scores, threshold=threshold)))
    mean = float(scores[np.triu_indices(len(chains), 1)].mean())
    return Diversity(mean_tm=mean, clusters=count, share=count / len(chains))
