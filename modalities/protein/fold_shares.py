"""How varied the folds of designs are, and how near their shares come to those of real chains.

Proteina's fS and fJSD (Geffner et al., 2025, arXiv 2503.00710) on whatever tells classes; its own network,
GearNet, is not needed: ``fold_classes_of`` tells three classes, and chains of none, from CA atoms alone.
"""

import numpy as np
from jaxtyping import Float, Int

Shares = Float[np.ndarray, " sample class"]
TENFOLD = 10.0  # the paper's unit


def fold_score(shares: Shares) -> float:
    r""":math:`\exp E_x\, KL(p(y|x) \| p(y))`: from 1, all alike, to the number of classes."""
    return float(np.exp(_divergences(shares, shares.mean(0)).mean()))


def fold_divergence(a: Float[np.ndarray, " a class"], b: Float[np.ndarray, " b class"]) -> float:
    r"""Ten times the Jensen-Shannon divergence of two sets' mean shares, in nats: 0 to :math:`10 \ln 2`."""
    means = np.stack([a.mean(0), b.mean(0)])
    return TENFOLD * float(_divergences(means, means.mean(0)).mean())


def certain(classes: Int[np.ndarray, " sample"], count: int) -> Shares:
    """Shares of samples whose class is known."""
    return np.eye(count)[classes]


def _divergences(p: Shares, q: Float[np.ndarray, " class"]) -> Float[np.ndarray, " sample"]:
    """KL(p || q) of each row; a class that it has not adds nothing."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return (p * np.log(ratio)).sum(1)
