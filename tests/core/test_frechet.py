"""The distance of Gaussians, by its closed form."""

import numpy as np
import pytest

from fewstep.core.frechet import Moments, frechet_distance, frechet_of_moments


def test_samples_on_a_line() -> None:
    grid = np.array([[-1.0], [1.0]])  # sample variance 2
    a, b = grid, 3 * grid + 5
    assert frechet_distance(a, b) == pytest.approx(25 + (np.sqrt(18) - np.sqrt(2)) ** 2)
    features = np.random.default_rng(0).standard_normal((50, 6))
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(features, features + 1) == pytest.approx(6.0)


def test_round_gaussians_of_many_dimensions() -> None:
    def round_one(mean: float, variance: float) -> Moments:
        return Moments(np.full(128, float(mean)), variance * np.eye(128))

    wide = round_one(0, 9)
    assert frechet_of_moments(wide, wide) == pytest.approx(0.0, abs=1e-9)
    assert frechet_of_moments(wide, round_one(0, 4)) == pytest.approx(128)
    assert frechet_of_moments(wide, round_one(3, 4)) == pytest.approx(1280)


def test_turned_gaussians_by_the_square_root_of_the_product() -> None:
    random = np.random.default_rng(1)
    a, b = (Moments(random.standard_normal(5), np.cov(random.standard_normal((9, 5)).T)) for _ in range(2))
    roots = np.sqrt(np.linalg.eigvals(a.covariance @ b.covariance).real).sum()
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance) - 2 * roots
    assert frechet_of_moments(a, b) == pytest.approx(expected)
    assert frechet_of_moments(b, a) == pytest.approx(expected)
