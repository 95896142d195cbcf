r"""Many-step samplers of teachers: Proteina's stochastic one, stable at any number of steps, and the ODE.

In Proteina's time :math:`s = 1 - t` with :math:`v = (\hat x_0 - x_t) / t`,

.. math:: dx = (v + g\, \nabla \log p)\, ds + \sqrt{2 g \gamma}\, dW,

whose final samples of Gaussian data of scale :math:`\sigma` have scale :math:`\sqrt\gamma\, \sigma`: a
:math:`\gamma` below 1 trades diversity for order.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Denoiser
from fewstep.core.samplers import Progress
from fewstep.modalities.protein.centring import Generators, centred, centred_noise
from fewstep.modalities.protein.denoisers import ChainCondition, GuidedChains
from fewstep.modalities.protein.times import Schedule, solver_grid

Chains = Float[Tensor, " batch residue 3"]

GAIN_EPS = 0.01  # of Proteina's gains, which diverge at noise
LAST_STOCHASTIC = 0.01  # nearer to the data than this, steps are the ODE's


def network_calls(denoiser: Denoiser) -> int:
    """Forward passes that one call of a denoiser of chains costs: more than one where it is guided."""
    if not isinstance(denoiser, GuidedChains) or denoiser.guidance_scale == 1:
        return 1
    return 1 + (denoiser.worse is not None) + (denoiser.autoguidance_share < 1)


@dataclass(frozen=True, kw_only=True)
class ChainSampling:
    r"""Euler's method on the stochastic differential equation, or on the ordinary one.

    Euler's method contracts x towards :math:`\hat x_0` at the rate :math:`1/t + g/t^2`, so that steps of dt
    much longer than :math:`t^2 / g` overshoot. With Proteina's gain and grid that is all of them below some
    230 steps, at both ends. ``gain_cap`` keeps :math:`g \le \kappa t^2 / dt`.

    Args:
        num_steps: calls of the denoiser for one sample.
        stochastic: whether noise is added; False is the probability flow ODE.
        schedule: of the times, see ``solver_grid``.
        power: of the schedule.
        noise_variance: :math:`\gamma`, a factor on the variance of the noise. Proteina uses 0.35 to 0.6.
        gain: g as a function of s: ``inverse`` is 1 / s, ``ratio`` (1 - s) / s, ``tangent``
            :math:`\tfrac\pi2 \cot\tfrac{\pi s}2`.
        gain_cap: :math:`\kappa`; None is Proteina's sampler as it was released.
        self_condition: whether a call is given the estimate of the one before.
    """

    num_steps: int = 400
    stochastic: bool = True
    schedule: Schedule = "log"
    power: float = 2.0
    noise_variance: float = 0.45
    gain: Literal["inverse", "ratio", "tangent"] = "inverse"
    gain_cap: float | None = 0.5
    self_condition: bool = True

    def __post_init__(self) -> None:
        if self.noise_variance < 0 or (self.gain_cap is not None and self.gain_cap <= 0):
            raise ValueError(
                f"noise_variance={self.noise_variance} must be at least 0 and gain_cap={self.gain_cap} "
                "positive, or None for no cap"
            )
        self.times()

    def times(self) -> Float[Tensor, " steps"]:
        """From 1 to 0, ``num_steps + 1`` of them."""
        return solver_grid(self.num_steps, self.schedule, power=self.power)

    def nfe(self, denoiser: Denoiser) -> int:
        """Evaluations of networks for one sample."""
        return self.num_steps * network_calls(denoiser)

    def gains(self) -> Float[Tensor, " step"]:
        """g of each step, 0 where it is one of the ODE."""
        times = self.times()
        t, step = times[:-1], -times.diff()
        if not self.stochastic:
            return torch.zeros_like(t)
        s = 1 - t
        match self.gain:
            case "inverse":
                g = 1 / (s + GAIN_EPS)
            case "ratio":
                g = t / (s + GAIN_EPS)
            case "tangent":
                quarter = math.pi / 2
                g = quarter * (quarter * t).sin() / ((quarter * t).cos() + GAIN_EPS)
        if self.gain_cap is not None:
            g = torch.minimum(g, self.gain_cap * t.square() / step)
        return torch.where(t < LAST_STOCHASTIC, 0.0, g)

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoiser,
        condition: ChainCondition,
        *,
        noise: Chains | None = None,
        generator: Generators | None = None,
        progress: Progress | None = None,
    ) -> Chains:
        """Centred chains in nanometre, 0 at padding.

        Args:
            denoiser: on the linear path; guided if need be.
            condition: how long the chains are, and their folds.
            noise: standard Gaussian to start from; drawn from ``generator`` by default.
            generator: of all noise, on the condition's device; or one on the CPU for each chain.
            progress: called after each step.
        """
        mask = condition.mask
        x = centred_noise(mask, generator) if noise is None else centred(noise, mask)
        times, gains = self.times().tolist(), self.gains().tolist()
        told: Chains | None = None
        for step, gain in enumerate(gains):
            t, dt = times[step], times[step] - times[step + 1]
            x0 = denoiser(x, x.new_full((len(x),), t), condition.with_self_condition(told))
            told = x0 if self.self_condition else None
            drift = (x0 - x) / t
            if gain > 0:
                drift = drift + gain * ((1 - t) * x0 - x) / t**2
            x = x + dt * drift
            if gain > 0 and self.noise_variance > 0:
                x = x + math.sqrt(2 * gain * self.noise_variance * dt) * centred_noise(mask, generator)
            x = centred(x, mask)
            if progress is not None:
                progress(step + 1, self.num_steps)
        return x
