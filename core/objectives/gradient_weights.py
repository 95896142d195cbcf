"""Weights on a sample's gradient, for losses that reach the sample through other networks."""

from jaxtyping import Float
from torch import Tensor

from fewstep.core.layouts import Layout


def weigh_gradient(
    x: Float[Tensor, " *shape"], weight: Tensor | None, layout: Layout
) -> Float[Tensor, " *shape"]:
    """``x`` itself, with its gradient multiplied element by element by ``weight``, a ``Sample.weight``."""
    if weight is None:
        return x
    constant = x.detach()
    return constant + (layout.expand(weight, x) * (x - constant)).to(x.dtype)
