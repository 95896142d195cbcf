"""TM-score of two chains under the best superposition and pairing that a search finds.

The score is of Zhang and Skolnick (2004); the search follows the plan of TM-align (2005): seeds from short
fragments and from sliding one chain along the other, then superposition and dynamic programming in turn.
Everything runs on a batch of pairs at once, on any device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.modalities.protein.alignment import best_pairing
from fewstep.modalities.protein.chains import Chain, PaddedChains, by_length, checked, padded, real
from fewstep.modalities.protein.superposition import Motion, superposition

FRAGMENT = 16  # residues
STARTS = 10  # of fragments in each chain
OFFSETS = 24  # of one chain along the other
CANDIDATES = 20  # seeds that are looked at as a whole
SEEDS = 5  # of those, the ones that are refined
FINALISTS = 2
ROUNDS, FINAL_ROUNDS, LAST_ROUNDS = 2, 4, 4
REWEIGHTINGS, FINAL_REWEIGHTINGS = 3, 8
SEARCH_DISTANCE = (
    4.0,
    8.0,
)  # angstrom; the scale of the search, which small chains need larger than the score
RESIDUES = 12_000  # of the longer chain of the pairs of a batch


@dataclass(frozen=True)
class TMScores:
    """Of pairs of chains: over the length of the first one and of the second one, with its scale each."""

    by_first: Float[np.ndarray, " pair"]
    by_second: Float[np.ndarray, " pair"]

    @property
    def mean(self) -> Float[np.ndarray, " pair"]:
        """Of the two; the same whichever chain is named first."""
        return (self.by_first + self.by_second) / 2


def scale(residues: Int[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    r"""Distance at which a pair counts half: :math:`d_0 = 1.24 (L - 15)^{1/3} - 1.8` angstrom, or 0.5."""
    return (1.24 * (residues - 15).clamp_min(0).double() ** (1 / 3) - 1.8).clamp_min(0.5).float()


def tm_scores(
    first: Sequence[Chain], second: Sequence[Chain], *, device: torch.device | str = "cpu"
) -> TMScores:
    """Of the chains at the same place in the two lists.

    Args:
        first: chains of at least three residues, in angstrom.
        second: as many.

    Raises:
        ValueError: for lists of different lengths, and chains that are too short or not finite.
    """
    if len(first) != len(second):
        raise ValueError(f"first has {len(first)} chains, second {len(second)}; give pairs")
    for name, chains in (("first", first), ("second", second)):
        checked(chains)
        if chains and min(map(len, chains)) < 3:
            raise ValueError(f"{name} has a chain of {min(map(len, chains))} residues; TM-score needs three")
    found = np.zeros((2, len(first)))
    longer = [max(len(one), len(other)) for one, other in zip(first, second, strict=True)]
    with torch.inference_mode():
        for group in by_length(longer, residues=RESIDUES):
            batch = (padded([chains[i] for i in group], device=device) for chains in (first, second))
            found[:, group] = torch.stack(_search(*batch)).cpu().numpy()
    return TMScores(found[0], found[1])


def tm_score_of_pairing(
    first: Float[Tensor, " *batch residue 3"], second: Float[Tensor, " *batch residue 3"]
) -> Float[Tensor, " *batch"]:
    """TM-score of chains whose residues correspond one to one, over their length.

    That of a design and its prediction. The superposition is the best of several, refined; no pairing is
    sought.
    """
    one, other = first.reshape(-1, *first.shape[-2:]), second.reshape(-1, *second.shape[-2:])
    size = one.shape[1]
    d0 = scale(torch.tensor([size], device=one.device))[:, None]
    best = one.new_zeros(len(one))
    span = size
    while span >= min(4, size):
        for start in range(0, size - span + 1, max(1, span // 2)):
            part = slice(start, start + span)
            motion = superposition(one[:, part], other[:, part])
            weights = one.new_ones(one.shape[:2])
            motion = _reweighted(one, other, weights, motion, d0, FINAL_REWEIGHTINGS)
            best = torch.maximum(best, _similarity(motion(one), other, d0).mean(1))
        span //= 2
    return best.reshape(first.shape[:-2])


def _search(
    first: Float[Tensor, " pair first 3"], second: Float[Tensor, " pair second 3"]
) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    here, there = real(first), real(second)
    sizes = here.sum(1), there.sum(1)
    first, second = _centred(first), _centred(second)
    low, high = SEARCH_DISTANCE
    d0 = (scale(torch.minimum(*sizes)) + 0.8).clamp(low, high)

    pair, motion = _seeds(first, second, sizes, d0)
    for rounds, kept in ((ROUNDS, FINALISTS), (FINAL_ROUNDS, 1)):
        items = _Items(first[pair], second[pair], here[pair], there[pair], d0[pair, None])
        motion, score, partner = items.refined(motion, rounds)
        pair, chosen = _best_of_each(pair, score, kept)
        motion, partner = motion[chosen], partner[chosen]

    # one item per pair is left, in order; the search's scale gives way to that of either score
    target, weights = _partners(second, partner)
    found = []
    for size in sizes:
        own = _Items(first, second, here, there, scale(size)[:, None])
        start = _reweighted(first, target, weights, motion, own.d0, FINAL_REWEIGHTINGS)
        _, score, _ = own.refined(start, LAST_ROUNDS)
        found.append(score / size)
    return found[0], found[1]


def _seeds(
    first: Tensor, second: Tensor, sizes: tuple[Tensor, Tensor], d0: Float[Tensor, " pair"]
) -> tuple[Int[Tensor, " item"], Motion]:
    """Motions of fragments onto fragments and of overlaps, those under which the chains lie nearest."""
    pairs, longest = first.shape[:2]
    window = min(FRAGMENT, int(torch.minimum(*sizes).min()))
    places = torch.linspace(0, 1, STARTS, device=first.device)
    starts = [(places * (size - window)[:, None]).round().long() for size in sizes]
    within = torch.arange(window, device=first.device)
    parts = [
        chain.gather(1, (start[:, :, None] + within).reshape(pairs, -1, 1).expand(-1, -1, 3)).reshape(
            pairs, STARTS, window, 3
        )
        for chain, start in zip((first, second), starts, strict=True)
    ]
    shape = (pairs, STARTS, STARTS, window, 3)
    motion = superposition(parts[0][:, :, None].expand(shape), parts[1][:, None].expand(shape))
    fragments = Motion(motion.rotation.flatten(1, 2), motion.translation.flatten(1, 2))
    offset = (starts[1][:, None] - starts[0][:, :, None]).flatten(1)

    # overlaps of at least half of the shorter chain
    half = torch.minimum(*sizes) // 2
    slides = torch.linspace(0, 1, OFFSETS, device=first.device)
    least, most = half - sizes[0], sizes[1] - half
    slide = (least[:, None] + slides * (most - least)[:, None]).round().long()
    target, weights = _slid(second, slide, sizes, longest)
    overlaps = superposition(first[:, None].expand_as(target), target, weights=weights)

    motion = Motion(
        torch.cat([fragments.rotation, overlaps.rotation], 1),
        torch.cat([fragments.translation, overlaps.translation], 1),
    )
    target, weights = _slid(second, torch.cat([offset, slide], 1), sizes, longest)
    score = (_similarity(motion(first[:, None]), target, d0[:, None, None]) * weights).sum(-1)
    pair, chosen = _top(score, CANDIDATES)
    motion = Motion(motion.rotation.flatten(0, 1)[chosen], motion.translation.flatten(0, 1)[chosen])

    moved = motion(first[pair])
    inside = _inside(sizes, first.shape[1], second.shape[1])
    nearest = _all_similarities(moved, second[pair], d0[pair, None, None])
    nearest = nearest * inside[1][pair][:, None]
    score = (nearest.amax(2) * inside[0][pair]).sum(1)
    kept, chosen = _best_of_each(pair, score, SEEDS)
    return kept, motion[chosen]


def _inside(sizes: tuple[Tensor, Tensor], first: int, second: int) -> tuple[Tensor, Tensor]:
    """1 where there is a residue, of both chains."""
    ranges = (torch.arange(width, device=sizes[0].device) for width in (first, second))
    one, other = ((place < size[:, None]).float() for place, size in zip(ranges, sizes, strict=True))
    return one, other


def _slid(
    second: Tensor, offset: Int[Tensor, " pair slide"], sizes: tuple[Tensor, Tensor], longest: int
) -> tuple[Float[Tensor, " pair slide residue 3"], Float[Tensor, " pair slide residue"]]:
    """The residue of the second chain beside each of the first one's, and 1 where both are there."""
    i = torch.arange(longest, device=second.device)
    j = i + offset[:, :, None]
    there = (i < sizes[0][:, None, None]) & (j >= 0) & (j < sizes[1][:, None, None])
    index = j.clamp(0, second.shape[1] - 1)
    flat = index.flatten(1)[:, :, None].expand(-1, -1, 3)
    return second.gather(1, flat).reshape(*index.shape, 3), there.float()


@dataclass(frozen=True)
class _Items:
    first: Float[Tensor, " item first 3"]
    second: Float[Tensor, " item second 3"]
    here: Tensor
    there: Tensor
    d0: Float[Tensor, " item 1"]

    def refined(
        self, motion: Motion, rounds: int
    ) -> tuple[Motion, Float[Tensor, " item"], Int[Tensor, " item first"]]:
        """Pairing and superposition in turn, and the best that came by."""
        both = self.here[:, :, None] & self.there[:, None]
        best = self.first.new_full((len(self.first),), -1.0)
        held_rotation, held_translation = motion.rotation, motion.translation
        held_partner = torch.full_like(self.here, -1, dtype=torch.long)
        for _ in range(rounds):
            similar = _all_similarities(motion(self.first), self.second, self.d0[:, :, None])
            partner = best_pairing(similar * both)
            target, weights = _partners(self.second, partner)
            motion = _reweighted(self.first, target, weights, motion, self.d0, REWEIGHTINGS)
            score = (_similarity(motion(self.first), target, self.d0) * weights).sum(1)
            better = score > best
            best = torch.where(better, score, best)
            held_rotation = torch.where(better[:, None, None], motion.rotation, held_rotation)
            held_translation = torch.where(better[:, None], motion.translation, held_translation)
            held_partner = torch.where(better[:, None], partner, held_partner)
        return Motion(held_rotation, held_translation), best, held_partner


def _reweighted(
    first: Tensor, target: Tensor, weights: Tensor, motion: Motion, d0: Tensor, times: int
) -> Motion:
    # The score is concave in d^2, so a superposition with its slopes as weights never lowers it.
    for _ in range(times):
        slopes = weights * _similarity(motion(first), target, d0).square()
        motion = superposition(first, target, weights=slopes)
    return motion


def _similarity(one: Tensor, other: Tensor, d0: Tensor) -> Tensor:
    return 1 / (1 + (one - other).square().sum(-1) / d0.square())


def _all_similarities(one: Tensor, other: Tensor, d0: Tensor) -> Float[Tensor, " item first second"]:
    squared = one.square().sum(-1)[:, :, None] + other.square().sum(-1)[:, None]
    squared = torch.baddbmm(squared, one, other.mT, alpha=-2).clamp_min_(0)
    return squared.div_(d0.square()).add_(1).reciprocal_()


def _partners(second: Tensor, partner: Int[Tensor, " item first"]) -> tuple[Tensor, Tensor]:
    index = partner.clamp_min(0)[:, :, None].expand(-1, -1, 3)
    return second.gather(1, index), (partner >= 0).float()


def _centred(chains: PaddedChains) -> PaddedChains:
    return (chains - chains.nanmean(1, keepdim=True)).nan_to_num(0.0)


def _top(score: Float[Tensor, " pair choice"], count: int) -> tuple[Tensor, Tensor]:
    """Pairs, and flat indices, of the greatest scores of each pair."""
    pairs, choices = score.shape
    chosen = score.topk(min(count, choices), 1).indices
    pair = torch.arange(pairs, device=score.device)[:, None].expand_as(chosen)
    return pair.flatten(), (pair * choices + chosen).flatten()


def _best_of_each(pair: Tensor, score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same where each pair has equally many items, one pair after the other."""
    pairs = int(pair[-1]) + 1
    kept, chosen = _top(score.reshape(pairs, -1), count)
    return kept, chosen
