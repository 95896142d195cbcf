"""Scores of folds against their closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.modalities.protein.fold_shares import certain, fold_divergence, fold_score

CLASSES = 128


def test_half_of_the_classes_against_all_of_them() -> None:
    even = np.full((3, CLASSES), 1 / CLASSES)
    half = np.where(np.arange(CLASSES) < CLASSES // 2, 2 / CLASSES, 0.0)[None]
    assert fold_divergence(half, even) == pytest.approx(2.158, abs=5e-4)
    assert fold_divergence(half, half[:, ::-1]) == pytest.approx(10 * np.log(2))
    assert fold_divergence(even, even) == pytest.approx(0.0, abs=1e-12)


def test_a_score_is_the_number_of_classes_that_are_met() -> None:
    assert fold_score(certain(np.array([0, 1, 2, 0, 1, 2]), 4)) == pytest.approx(3.0)
    assert fold_score(certain(np.array([1, 1, 1]), 4)) == pytest.approx(1.0)
    unsure = np.full((5, 4), 0.25)  # nothing is told of any sample
    assert fold_score(unsure) == pytest.approx(1.0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), samples=st.integers(1, 9), classes=st.integers(1, 6))
def test_bounds_and_symmetry(seed: int, samples: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    a, b = (random.dirichlet(np.full(classes, 0.3), samples) for _ in range(2))
    assert fold_divergence(a, b) == pytest.approx(fold_divergence(b, a), abs=1e-9)
    assert -1e-9 <= fold_divergence(a, b) <= 10 * np.log(2) + 1e-9
    assert 1 - 1e-9 <= fold_score(a) <= classes + 1e-9
