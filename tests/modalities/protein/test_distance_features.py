"""Features of chains: what moves them, and that they tell sets of chains apart."""

import numpy as np
import pytest

from fewstep.apps.eval_protein import real_chains
from fewstep.core.frechet import frechet_distance
from fewstep.modalities.protein.distance_features import GAPS, SHORTEST, distance_features
from fewstep.modalities.protein.evaluation import Measures, scores

MEASURES = Measures(compared=2, searched=1, candidates=2, designed=1, known=None, designer=None)


def test_of_a_straight_line_by_hand() -> None:
    line = np.outer(np.arange(40.0), [0.0, 0.0, 3.8])
    features = distance_features([line])
    expected = [value for gap in GAPS for value in (3.8 * gap**0.4, 0.0)]
    np.testing.assert_allclose(features, [expected], atol=1e-9)


def test_where_a_chain_lies_and_its_mirror_image_change_nothing() -> None:
    chain = np.random.default_rng(0).standard_normal((50, 3)).cumsum(0)
    turned = chain[:, [2, 0, 1]] * [1, 1, -1] + 7
    np.testing.assert_allclose(distance_features([chain]), distance_features([turned]))


def test_a_short_chain_is_named() -> None:
    with pytest.raises(ValueError, match=f"has 12 residues; distances need at least {SHORTEST}"):
        distance_features([np.zeros((12, 3))])


def test_other_real_chains_are_nearest_then_shaken_ones_then_swollen_ones() -> None:
    lengths = list(range(40, 104, 2))
    compared = real_chains(lengths * 2, split="train")
    real = real_chains(lengths)
    random = np.random.default_rng(0)
    shaken = [chain + random.normal(0, 0.7, chain.shape) for chain in real]
    swollen = [1.3 * chain for chain in real]
    found = [scores(chains, MEASURES, real=compared) for chains in (real, shaken, swollen)]
    distances = [one["frechet"] for one in found]
    assert distances[0] < distances[1] < distances[2]
    assert found[0]["fold_jsd"] < found[1]["fold_jsd"]  # shaken helices are none
    assert 1 <= found[1]["fold_score"] < found[0]["fold_score"] <= 4
    features = distance_features(compared)
    unit = features.std(0)
    assert distances[0] == pytest.approx(frechet_distance(distance_features(real) / unit, features / unit))


def test_short_designs_have_the_other_scores() -> None:
    short = real_chains([20, 20])
    found = scores(short, MEASURES, real=real_chains([20, 20], split="train"))
    assert "frechet" not in found
    assert {"fold_jsd", "valid"} <= set(found)
