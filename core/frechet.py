"""How far two sets of features lie apart, taken for Gaussians (Heusel et al., 2017, arXiv 1706.08500)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features."""

    mean: Float[np.ndarray, " feature"]
    covariance: Float[np.ndarray, " feature feature"]

    @classmethod
    def of(
        cls,
        features: Float[np.ndarray, " sample feature"],
        weights: Float[np.ndarray, " sample"] | None = None,
    ) -> "Moments":
        """Of the samples, which count in proportion to `weights` where these are given."""
        covariance = np.atleast_2d(np.cov(features, rowvar=False, aweights=weights))
        return cls(np.average(features, axis=0, weights=weights), covariance)


def frechet_distance(
    features_a: Float[np.ndarray, " a feature"], features_b: Float[np.ndarray, " b feature"]
) -> float:
    """`frechet_of_moments` of two sets of features.

    Compare sets with equal shares of their kinds: the shares move the mean.
    """
    return frechet_of_moments(Moments.of(features_a), Moments.of(features_b))


def frechet_of_moments(a: Moments, b: Moments) -> float:
    r"""Squared Frechet distance of the Gaussians with these means and covariances.

    .. math:: |\mu_a - \mu_b|^2
        + \mathrm{tr}(\Sigma_a + \Sigma_b - 2 (\Sigma_a^{1/2} \Sigma_b \Sigma_a^{1/2})^{1/2})
    """
    mean = a.mean - b.mean
    values, vectors = np.linalg.eigh(a.covariance)
    root_a = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root_a @ b.covariance @ root_a).clip(0)).sum()
    return float(mean @ mean + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)
