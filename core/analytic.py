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


@dataclass(frozen=True, kw_only=True)
class GaussianFlowMap:
    r"""The exact ``FlowMap`` where every element of the data is :math:`N(\mu, s^2)`, on the linear path.

    .. math:: \bar u(x_t, t, r) =
        \frac{t + r - s^2 (2 - t - r)}{V_t + \sqrt{V_t V_r}} (x_t - (1 - t)\,\mu) - \mu

    with :math:`V_t = (1 - t)^2 s^2 + t^2`, written so that it is smooth at r = t, where it is the velocity.
    """

    mean: float | Tensor = 0.0
    std: float | Tensor = 1.0

    @property
    def path(self) -> LinearPath:
        return LinearPath()

    def average_velocity(
        self,
        x_t: Float[Tensor, " batch *event"],
        t: Float[Tensor, " batch *leading"],
        r: Float[Tensor, " batch *leading"],
        condition: Condition,
    ) -> Float[Tensor, " batch *event"]:
        time, end = append_dims(t, x_t), append_dims(r, x_t)
        at_t, at_r = self._variance(time), self._variance(end)
        slope = (time + end - self.std**2 * (2 - time - end)) / (at_t + (at_t * at_r).sqrt())
        return (slope * (x_t - (1 - time) * self.mean) - self.mean).to(x_t.dtype)

    def __call__(
        self, x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch *leading"], condition: Condition
    ) -> Float[Tensor, " batch *event"]:
        return x_t - append_dims(t, x_t) * self.average_velocity(x_t, t, torch.zeros_like(t), condition)

    def _variance(self, t: Tensor) -> Tensor:
        return (1 - t) ** 2 * self.std**2 + t**2


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
        # no matrix product, which autocast would do in half precision
        centre = (responsibility[..., None] * self.centres).sum(1)
        return (centre + alpha * self.std**2 / variance * (x_t - alpha * centre)).to(x_t.dtype)
