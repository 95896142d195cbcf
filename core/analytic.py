"""Denoisers in closed form, to prove objectives and samplers against."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Condition
from fewstep.core.layouts import append_dims
from fewstep.core.paths import LinearPath, Path


@dataclass(frozen=True, kw_only=True)
class GaussianDenoiser:
    r"""The exact :math:`E[x_0 | x_t]` where every element of the data is :math:`N(\mu, s^2)`.

    .. math:: \hat x_0 = \mu + \frac{\alpha s^2}{\alpha^2 s^2 + \sigma^2} (x_t - \alpha \mu)

    ``mean`` and ``std`` are numbers, or tensors that broadcast against a sample. The condition is ignored.
    """

    mean: float | Tensor = 0.0
    std: float | Tensor = 1.0
    path: Path = field(default_factory=LinearPath)

    def __call__(
        self, x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch *leading"], condition: Condition
    ) -> Float[Tensor, " batch *event"]:
        time = append_dims(t, x_t)
        alpha = self.path.alpha(time)
        shrink = alpha * self.std**2 / self.variance(time)
        return (self.mean + shrink * (x_t - alpha * self.mean)).to(x_t.dtype)

    def variance(self, t: Tensor) -> Tensor:
        """The variance of ``x_t``."""
        return self.path.alpha(t) ** 2 * self.std**2 + self.path.sigma(t) ** 2

    def transport(self, x_t: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """Where the probability flow ODE takes ``x_t`` from time ``t`` to time ``r``; both broadcast."""
        ratio = (self.variance(r) / self.variance(t)).sqrt()
        return self.path.alpha(r) * self.mean + ratio * (x_t - self.path.alpha(t) * self.mean)


@dataclass(frozen=True, kw_only=True, eq=False)
class MixtureDenoiser:
    r"""The exact :math:`E[x_0 | x_t]` of an even mixture of :math:`N(c_k, s^2 I)` in D dimensions."""

    centres: Float[Tensor, " mode dim"]
    std: float
    path: Path = field(default_factory=LinearPath)

    def __call__(
        self, x_t: Float[Tensor, " batch dim"], t: Float[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, " batch dim"]:
        time = append_dims(t, x_t)
        alpha = self.path.alpha(time)
        variance = alpha.square() * self.std**2 + self.path.sigma(time).square()
        distances = (x_t[:, None] - alpha[..., None] * self.centres).square().sum(-1)
        responsibility = torch.softmax(-distances / (2 * variance), dim=1)
        centre = responsibility @ self.centres.to(responsibility.dtype)
        return (centre + alpha * self.std**2 / variance * (x_t - alpha * centre)).to(x_t.dtype)
