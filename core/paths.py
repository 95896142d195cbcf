r"""Noising paths :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon` and all conversions between predictions."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Prediction = Literal["x0", "eps", "velocity", "v_ddpm", "score"]

X = Float[Tensor, " *shape"]
Time = Float[Tensor, " *#shape"]

QUARTER_TURN = math.pi / 2


def _precise(t: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """All in float32, or in float64 where an argument is: a half-precision time is already wrong."""
    dtype = torch.float32
    for tensor in (t, *tensors):
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in (t, *tensors))


class Path(ABC):
    r"""A path from data (t = 0) to noise (t = 1).

    A path is its four coefficients; the conversions follow from them, with :math:`\epsilon \sim N(0, I)`:

    * ``x0`` :math:`= E[x_0 | x_t]` and ``eps`` :math:`= E[\epsilon | x_t]`
    * ``velocity`` :math:`= \dot\alpha\, x_0 + \dot\sigma\, \epsilon`, the drift of the probability flow ODE
    * ``v_ddpm`` :math:`= \alpha\, \epsilon - \sigma\, x_0` (Salimans & Ho, 2022)
    * ``score`` :math:`= \nabla \log p_t(x_t) = -\epsilon / \sigma`

    Every method takes ``t`` in a shape that already broadcasts against ``x_t`` (``fewstep.core.layouts``),
    computes in float32 (float64 where an argument is), and returns the dtype of ``x_t``.
    The singular ends are left as they are: where the formula divides by zero, the result is inf or nan.
    That is sigma = 0 for ``eps``, ``velocity``, ``v_ddpm`` and ``score`` from ``x0``, and alpha = 0 for
    ``x0`` from ``eps`` or ``score``; ``x0`` from ``velocity`` or ``v_ddpm`` has no singular end.
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data at time ``t``, elementwise."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Scale of the standard Gaussian noise at time ``t``, elementwise."""

    @abstractmethod
    def alpha_dot(self, t: Tensor) -> Tensor:
        """Time derivative of ``alpha``."""

    @abstractmethod
    def sigma_dot(self, t: Tensor) -> Tensor:
        """Time derivative of ``sigma``."""

    @abstractmethod
    def time_of_eta(self, eta: Tensor) -> Tensor:
        """The time at which the noise-to-signal ratio is ``eta``; inverse of :meth:`eta`."""

    def eta(self, t: Tensor) -> Tensor:
        r"""Noise-to-signal ratio :math:`\sigma_t / \alpha_t`; inf where alpha is 0."""
        return self.sigma(t) / self.alpha(t)

    def wronskian(self, t: Tensor) -> Tensor:
        r""":math:`W = \alpha \dot\sigma - \sigma \dot\alpha`, what the velocity conversions divide by."""
        return self.alpha(t) * self.sigma_dot(t) - self.sigma(t) * self.alpha_dot(t)

    def add_noise(self, x0: X, eps: X, t: Time) -> X:
        r""":math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`."""
        time, clean, noise = _precise(t, x0, eps)
        return (self.alpha(time) * clean + self.sigma(time) * noise).to(x0.dtype)

    def renoise(self, x_s: X, s: Time, t: Time, xi: X) -> X:
        r"""Diffuse from time ``s`` on to the noisier ``t`` with fresh standard noise ``xi``.

        .. math:: x_t = \frac{\alpha_t}{\alpha_s} x_s + \beta \xi, \quad
            \beta^2 = \sigma_t^2 - (\alpha_t / \alpha_s)^2 \sigma_s^2

        A ``t`` less noisy than ``s`` has no such transition and gives nan; ``t = s`` returns ``x_s``.
        """
        t_p, s_p, x, noise = _precise(t, s, x_s, xi)
        ratio = self.alpha(t_p) / self.alpha(s_p)
        carried = ratio * self.sigma(s_p)
        # The factored difference of squares is exactly 0 at t = s, where the plain one may round below 0.
        beta = ((self.sigma(t_p) - carried) * (self.sigma(t_p) + carried)).sqrt()
        return (ratio * x + beta * noise).to(x_s.dtype)

    def x0_from_eps(self, eps: X, x_t: X, t: Time) -> X:
        time, prediction, x = _precise(t, eps, x_t)
        return ((x - self.sigma(time) * prediction) / self.alpha(time)).to(x_t.dtype)

    def eps_from_x0(self, x0: X, x_t: X, t: Time) -> X:
        time, prediction, x = _precise(t, x0, x_t)
        return ((x - self.alpha(time) * prediction) / self.sigma(time)).to(x_t.dtype)

    def x0_from_velocity(self, velocity: X, x_t: X, t: Time) -> X:
        time, prediction, x = _precise(t, velocity, x_t)
        x0 = (self.sigma_dot(time) * x - self.sigma(time) * prediction) / self.wronskian(time)
        return x0.to(x_t.dtype)

    def velocity_from_x0(self, x0: X, x_t: X, t: Time) -> X:
        time, prediction, x = _precise(t, x0, x_t)
        velocity = (self.sigma_dot(time) * x - self.wronskian(time) * prediction) / self.sigma(time)
        return velocity.to(x_t.dtype)

    def eps_from_velocity(self, velocity: X, x_t: X, t: Time) -> X:
        time, prediction, x = _precise(t, velocity, x_t)
        eps = (self.alpha(time) * prediction - self.alpha_dot(time) * x) / self.wronskian(time)
        return eps.to(x_t.dtype)

    def x0_from_v_ddpm(self, v_ddpm: X, x_t: X, t: Time) -> X:
        time, prediction, x = _precise(t, v_ddpm, x_t)
        alpha, sigma = self.alpha(time), self.sigma(time)
        return ((alpha * x - sigma * prediction) / (alpha.square() + sigma.square())).to(x_t.dtype)

    def v_ddpm_from_x0(self, x0: X, x_t: X, t: Time) -> X:
        time, prediction, x = _precise(t, x0, x_t)
        alpha, sigma = self.alpha(time), self.sigma(time)
        return ((alpha * x - (alpha.square() + sigma.square()) * prediction) / sigma).to(x_t.dtype)

    def x0_from_score(self, score: X, x_t: X, t: Time) -> X:
        time, prediction, x = _precise(t, score, x_t)
        return ((x + self.sigma(time).square() * prediction) / self.alpha(time)).to(x_t.dtype)

    def score_from_x0(self, x0: X, x_t: X, t: Time) -> X:
        time, prediction, x = _precise(t, x0, x_t)
        return ((self.alpha(time) * prediction - x) / self.sigma(time).square()).to(x_t.dtype)

    def to_x0(self, prediction: X, x_t: X, t: Time, kind: Prediction) -> X:
        """``x0`` from a prediction of the given kind at the same ``x_t`` and ``t``."""
        match kind:
            case "x0":
                return prediction.to(x_t.dtype)
            case "eps":
                return self.x0_from_eps(prediction, x_t, t)
            case "velocity":
                return self.x0_from_velocity(prediction, x_t, t)
            case "v_ddpm":
                return self.x0_from_v_ddpm(prediction, x_t, t)
            case "score":
                return self.x0_from_score(prediction, x_t, t)

    def from_x0(self, x0: X, x_t: X, t: Time, kind: Prediction) -> X:
        """The prediction of the given kind that ``x0`` stands for at the same ``x_t`` and ``t``."""
        match kind:
            case "x0":
                return x0.to(x_t.dtype)
            case "eps":
                return self.eps_from_x0(x0, x_t, t)
            case "velocity":
                return self.velocity_from_x0(x0, x_t, t)
            case "v_ddpm":
                return self.v_ddpm_from_x0(x0, x_t, t)
            case "score":
                return self.score_from_x0(x0, x_t, t)

    def error_scale(self, t: Tensor, kind: Prediction) -> Tensor:
        """The size of the error in ``kind`` that an error of 1 in ``x0`` is: for ``eps``, alpha / sigma."""
        (time,) = _precise(t)
        alpha, sigma = self.alpha(time), self.sigma(time)
        match kind:
            case "x0":
                return torch.ones_like(time)
            case "eps":
                return alpha / sigma
            case "velocity":
                return self.wronskian(time) / sigma
            case "v_ddpm":
                return (alpha.square() + sigma.square()) / sigma
            case "score":
                return alpha / sigma.square()


@dataclass(frozen=True)
class LinearPath(Path):
    r"""Rectified flow: :math:`\alpha = 1 - t`, :math:`\sigma = \sigma_{min} + (1 - \sigma_{min}) t`; W = 1.

    With the default ``sigma_min=0`` the velocity is ``eps - x0``. TRELLIS uses ``sigma_min=1e-5``.
    """

    sigma_min: float = 0.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min + (1 - self.sigma_min) * t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -1.0)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 - self.sigma_min)

    def wronskian(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_of_eta(self, eta: Tensor) -> Tensor:
        t = (eta - self.sigma_min) / (eta + (1 - self.sigma_min))
        return torch.where(eta.isinf(), 1.0, t)


@dataclass(frozen=True)
class VPPath(Path):
    r"""Variance preserving: :math:`\alpha = \cos(\pi t / 2)`, :math:`\sigma = \sin(\pi t / 2)`."""

    def alpha(self, t: Tensor) -> Tensor:
        # The sine of the complement is exactly 0 at t = 1, the cosine is not.
        return torch.sin((1 - t) * QUARTER_TURN)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * QUARTER_TURN)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -QUARTER_TURN * self.sigma(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return QUARTER_TURN * self.alpha(t)

    def wronskian(self, t: Tensor) -> Tensor:
        return torch.full_like(t, QUARTER_TURN)

    def time_of_eta(self, eta: Tensor) -> Tensor:
        return torch.atan(eta) / QUARTER_TURN


@dataclass(frozen=True)
class TrigFlowPath(Path):
    r"""TrigFlow (Lu & Song, 2024): :math:`x_t = \cos\tau x_0 + \sin\tau \sigma_d \epsilon`, tau = pi t / 2.

    Time is in [0, 1] as everywhere; a network trained in the angle gets ``angle(t)``.
    """

    sigma_data: float = 0.5

    def angle(self, t: Tensor) -> Tensor:
        return t * QUARTER_TURN

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin((1 - t) * QUARTER_TURN)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_data * torch.sin(self.angle(t))

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -QUARTER_TURN * torch.sin(self.angle(t))

    def sigma_dot(self, t: Tensor) -> Tensor:
        return self.sigma_data * QUARTER_TURN * self.alpha(t)

    def wronskian(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_data * QUARTER_TURN)

    def time_of_eta(self, eta: Tensor) -> Tensor:
        return torch.atan(eta / self.sigma_data) / QUARTER_TURN


@dataclass(frozen=True)
class EDMPath(Path):
    r"""Variance exploding (Karras et al., 2022): :math:`x_\sigma = x_0 + \sigma \epsilon`.

    The one path whose time is not in [0, 1]: time is sigma itself, in [0, inf). Put a denoiser of this kind
    behind ``fewstep.core.denoisers.OnPath`` to call it with the time of another path.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_of_eta(self, eta: Tensor) -> Tensor:
        return eta


@dataclass(frozen=True)
class DiscreteVPPath(Path):
    r"""Variance preserving from a table of :math:`\bar\alpha_k` (SD1.5, SDXL, PixArt).

    ``t = k / (K - 1)`` reproduces entry k exactly, and ``timestep`` gives the k that such a network expects.
    In between, the logarithm of the noise-to-signal ratio is linear in t, so that the derivatives exist and
    ``time_of_eta`` is an exact inverse. t = 0 is the table's first entry, which is not quite clean data.
    """

    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        decreasing = all(a > b for a, b in zip(self.alphas_cumprod, self.alphas_cumprod[1:], strict=False))
        if (
            len(self.alphas_cumprod) < 2
            or not decreasing
            or not 0 < self.alphas_cumprod[-1] < self.alphas_cumprod[0] < 1
        ):
            raise ValueError(
                f"alphas_cumprod with {len(self.alphas_cumprod)} entries must fall strictly, inside (0, 1); "
                "pass the scheduler's table, and rescale a zero-terminal-SNR one before"
            )

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 0.00085, beta_end: float = 0.012, size: int = 1000
    ) -> "DiscreteVPPath":
        """The table of Stable Diffusion 1.x and XL: betas linear in their square root."""
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, size, dtype=torch.float64).square()
        return cls(tuple((1 - betas).cumprod(0).tolist()))

    @cached_property
    def _log_eta(self) -> Tensor:
        table = torch.tensor(self.alphas_cumprod, dtype=torch.float64)
        return 0.5 * torch.log((1 - table) / table)

    def timestep(self, t: Tensor) -> Tensor:
        """The table index a pretrained network expects, nearest to ``t``."""
        return (t * (len(self.alphas_cumprod) - 1)).round().long()

    def _interpolate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log eta and its time derivative, of the shape and dtype of ``t``."""
        table, last = self._log_eta.to(t.device), len(self.alphas_cumprod) - 1
        position = t.double() * last
        index = position.floor().clamp(0, last - 1).long()
        slope = table[index + 1] - table[index]
        return (table[index] + (position - index) * slope).to(t.dtype), (slope * last).to(t.dtype)

    def eta(self, t: Tensor) -> Tensor:
        return self._interpolate(t)[0].exp()

    def alpha(self, t: Tensor) -> Tensor:
        return (1 + self.eta(t).square()).rsqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return self.eta(t) * self.alpha(t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -self.eta(t) * self._eta_dot(t) * self.alpha(t) ** 3

    def sigma_dot(self, t: Tensor) -> Tensor:
        return self._eta_dot(t) * self.alpha(t) ** 3

    def _eta_dot(self, t: Tensor) -> Tensor:
        log_eta, slope = self._interpolate(t)
        return log_eta.exp() * slope

    def time_of_eta(self, eta: Tensor) -> Tensor:
        table, last = self._log_eta.to(eta.device), len(self.alphas_cumprod) - 1
        log_eta = eta.double().log()
        index = (torch.searchsorted(table, log_eta, right=True) - 1).clamp(0, last - 1)
        position = index + (log_eta - table[index]) / (table[index + 1] - table[index])
        return (position / last).to(eta.dtype)


def match_time(t: Tensor, source: Path, target: Path) -> tuple[Tensor, Tensor]:
    r"""The time on ``target`` whose noise-to-signal ratio ``t`` has on ``source``, and the scale of ``x_t``.

    Feeding ``target``'s network ``scale * x_t`` at the matched time leaves ``x0`` and ``eps`` unchanged.
    The score there is the source's divided by ``scale``; a velocity has to be recomputed from ``x0``.
    Near alpha = 0 the ratio diverges: an EDM time for t = 1 is inf.
    """
    (time,) = _precise(t)
    matched = target.time_of_eta(source.eta(time))
    # Both ratios are the scale, but that of the alphas is 0 / 0 at one end, that of the sigmas at the other.
    noisy = source.alpha(time) < source.sigma(time)
    by_sigma = target.sigma(matched) / source.sigma(time)
    by_alpha = target.alpha(matched) / source.alpha(time)
    return matched, torch.where(noisy, by_sigma, by_alpha)
