"""Scores of a set of designs that are drawn alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fewstep.core.frechet import frechet_distance
from fewstep.modalities.protein.chains import Chain, padded
from fewstep.modalities.protein.data.fold_classes import UNKNOWN, fold_classes
from fewstep.modalities.protein.distance_features import SHORTEST, distance_features
from fewstep.modalities.protein.diversity import diversity
from fewstep.modalities.protein.fold_shares import certain, fold_divergence, fold_score
from fewstep.modalities.protein.geometry import geometry
from fewstep.modalities.protein.novelty import KnownChains
from fewstep.modalities.protein.secondary_structure import SecondaryStructure, p_sea
from fewstep.modalities.protein.sequence_design import SequenceDesigner


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured on how many of the designs, evenly chosen; the slow ones not on all.

    Args:
        compared: designs whose TM-scores with each other are taken.
        searched: designs whose nearest known chain is sought.
        candidates: known chains that are superposed for each.
        designed: designs that ProteinMPNN gives a sequence.
        known: the training chains; None for no novelty.
        designer: ProteinMPNN; None for no likelihood.
    """

    compared: int
    searched: int
    candidates: int
    designed: int
    known: KnownChains | None
    designer: SequenceDesigner | None


def scores(
    chains: Sequence[Chain], measures: Measures, *, real: Sequence[Chain] | None = None
) -> dict[str, float]:
    """By name; a score that no design has is left out.

    Args:
        chains: the designs.
        measures: what is measured.
        real: chains of the same lengths to compare the whole set with; None for no comparison.

    ``bond_mean`` in angstrom; ``bonds_within`` 0.1 of 3.8, ``clash_free`` and ``valid`` (no bond off by 0.4,
    no clash) in per cent; ``clashes`` per design; ``radius_ratio`` to a compact chain's; ``helix``,
    ``strand`` and ``right_handed`` in per cent; ``mean_tm`` of two designs and ``clusters`` in per cent of
    designs; ``nearest_tm`` to a known chain; ``mpnn_nll`` and ``mpnn_information`` in nats
    (``Designed``). Against ``real``: ``frechet`` of ``distance_features`` in units of real chains' standard
    deviations, and ``fold_jsd`` (``fold_divergence``); ``fold_score`` is the designs' own.
    """
    shape, structure = geometry(padded(chains)), p_sea(padded(chains))
    found = {
        "bond_mean": shape.bond_mean.mean().item(),
        "bonds_within": 100 * shape.bond_share.mean().item(),
        "clash_free": 100 * (shape.clashes == 0).float().mean().item(),
        "valid": 100 * shape.valid.float().mean().item(),
        "radius_ratio": shape.radius_ratio.mean().item(),
        "helix": 100 * structure.helix_share().mean().item(),
        "strand": 100 * structure.strand_share().mean().item(),
        "right_handed": 100 * shape.right_handed.nanmean().item(),
    }
    found["fold_score"] = fold_score(_folds(structure))
    if real is not None:
        found["fold_jsd"] = fold_divergence(_folds(structure), _folds(p_sea(padded(real))))
        found |= _frechet(chains, real)
    variety = diversity(chosen(chains, measures.compared))
    found |= {"mean_tm": variety.mean_tm, "clusters": 100 * variety.share}
    if measures.known is not None:
        nearest = measures.known.nearest(chosen(chains, measures.searched), candidates=measures.candidates)
        found["nearest_tm"] = float(nearest.tm.mean())
    if measures.designer is not None:
        made = measures.designer.design(chosen(chains, measures.designed))
        found["mpnn_nll"] = float(np.mean([one.nll for one in made]))
        found["mpnn_information"] = float(np.mean([one.information for one in made]))
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _folds(structure: SecondaryStructure) -> Float[np.ndarray, " chain class"]:
    """Class by class; those that fit none are a class."""
    return certain(fold_classes(structure).cpu().numpy(), UNKNOWN + 1)


def _frechet(chains: Sequence[Chain], real: Sequence[Chain]) -> dict[str, float]:
    if min(len(chains), len(real)) < 2 or min(map(len, (*chains, *real))) < SHORTEST:
        return {}
    found, expected = distance_features(chains), distance_features(real)
    unit = expected.std(0)
    return {"frechet": frechet_distance(found / unit, expected / unit)}


def chosen(chains: Sequence[Chain], count: int) -> list[Chain]:
    """So many of them, evenly; all where there are fewer."""
    places = np.linspace(0, len(chains) - 1, min(count, len(chains))).round().astype(int)
    return [chains[place] for place in places]


def timed(draw: Callable[[], list[Chain]], now: Callable[[], float]) -> tuple[list[Chain], float]:
    """Designs, and how many of them a second of ``now`` gave."""
    before = now()
    chains = draw()
    return chains, len(chains) / max(now() - before, 1e-9)
