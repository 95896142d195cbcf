"""The denoiser contract, networks behind it, and guidance around it."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.layouts import append_dims
from fewstep.core.paths import LinearPath, Path, Prediction, match_time

Condition = object
"""Whatever the network accepts: a tensor, a dict of tensors, None. Only the network looks inside."""


@runtime_checkable
class Denoiser(Protocol):
    """Teacher, student and critic alike: ``denoiser(x_t, t, condition) -> x0_hat`` on a path.

    ``x_t`` is [B, ...] and ``t`` its leading shape: [B], or [B, F] for one time per frame.
    """

    @property
    def path(self) -> Path: ...

    def __call__(
        self, x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch *leading"], condition: Condition
    ) -> Float[Tensor, " batch *event"]: ...


@runtime_checkable
class FlowMap(Protocol):
    r"""A student that takes two times: it jumps along the probability flow from t to r in one call.

    ``average_velocity`` is :math:`\bar u(x_t, t, r)` with :math:`x_r = x_t - (t - r)\,\bar u`; at
    ``r = t`` it is the velocity. Called as a denoiser it jumps to r = 0.
    """

    @property
    def path(self) -> Path: ...

    def average_velocity(
        self,
        x_t: Float[Tensor, " batch *event"],
        t: Float[Tensor, " batch *leading"],
        r: Float[Tensor, " batch *leading"],
        condition: Condition,
    ) -> Float[Tensor, " batch *event"]: ...

    def __call__(
        self, x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch *leading"], condition: Condition
    ) -> Float[Tensor, " batch *event"]: ...


@runtime_checkable
class FeatureDenoiser(Protocol):
    """A denoiser that shows a layer of its network, for discriminators."""

    @property
    def path(self) -> Path: ...

    def features(
        self, x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch *leading"], condition: Condition
    ) -> Float[Tensor, " batch *token dim"]:
        """Channels last; under a mask or a packed layout the tokens are the sample's own."""
        ...

    def __call__(
        self, x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch *leading"], condition: Condition
    ) -> Float[Tensor, " batch *event"]: ...


def velocity_of(
    denoiser: Denoiser,
    x_t: Float[Tensor, " batch *event"],
    t: Float[Tensor, " batch *leading"],
    condition: Condition,
) -> Float[Tensor, " batch *event"]:
    """The flow velocity that any denoiser implies; t must be above 0."""
    x0 = denoiser(x_t, t, condition)
    return denoiser.path.velocity_from_x0(x0, x_t, append_dims(t, x_t))


class NetworkDenoiser(nn.Module):
    """A network that predicts any quantity of a path, as a denoiser.

    Args:
        network: called as ``network(x_t, t, condition)``, with ``t`` as given here and in float32 or float64.
        prediction: what the network returns; converted to ``x0`` in float32, and cast to x_t's dtype.
    """

    def __init__(
        self, network: nn.Module, path: Path | None = None, prediction: Prediction = "velocity"
    ) -> None:
        super().__init__()
        self.network = network
        self.path = path or LinearPath()
        self.prediction: Prediction = prediction

    def forward(
        self, x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch *leading"], condition: Condition
    ) -> Float[Tensor, " batch *event"]:
        prediction = self.network(x_t, t, condition)
        return self.path.to_x0(prediction, x_t, append_dims(t, x_t), self.prediction)

    def features(
        self, x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch *leading"], condition: Condition
    ) -> Float[Tensor, " batch *token dim"]:
        """See ``FeatureDenoiser``; the network must have a method ``features`` of the same arguments."""
        features = getattr(self.network, "features", None)
        if features is None:
            raise ValueError(
                f"network {type(self.network).__name__} has no features(x_t, t, condition); "
                "write that method to train a discriminator on it"
            )
        return features(x_t, t, condition)


class NetworkFlowMap(nn.Module):
    """A network of two times as a ``FlowMap`` on the linear path.

    Args:
        network: called as ``network(x_t, t, condition, r)`` with ``r`` in the shape of ``t``, float32 or
            float64; returns the average velocity. TwinFlow also calls it with negative times.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.path = LinearPath()

    def average_velocity(
        self,
        x_t: Float[Tensor, " batch *event"],
        t: Float[Tensor, " batch *leading"],
        r: Float[Tensor, " batch *leading"],
        condition: Condition,
    ) -> Float[Tensor, " batch *event"]:
        return self.network(x_t, t, condition, r)

    def forward(
        self, x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch *leading"], condition: Condition
    ) -> Float[Tensor, " batch *event"]:
        velocity = self.average_velocity(x_t, t, torch.zeros_like(t), condition)
        return self.path.x0_from_velocity(velocity, x_t, append_dims(t, x_t))


class OnPath(nn.Module):
    """A denoiser of one path, called with the times and samples of another (equal noise-to-signal ratio)."""

    def __init__(self, denoiser: Denoiser, path: Path) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.path = path

    def forward(
        self, x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch *leading"], condition: Condition
    ) -> Float[Tensor, " batch *event"]:
        matched, scale = match_time(t, self.path, self.denoiser.path)
        return self.denoiser((append_dims(scale, x_t) * x_t).to(x_t.dtype), matched, condition)


class Guided(nn.Module):
    r"""Classifier-free guidance: :math:`\hat x_0^\varnothing + w\,(\hat x_0^c - \hat x_0^\varnothing)`.

    Guidance is affine, so guiding ``x0`` is guiding any other prediction of the same path.

    Args:
        denoiser: called once with twice the batch where condition and null condition are tensors of equal
            shape and dtype, else twice.
        guidance_scale: w. 1 is off and never calls the null branch; 0 never calls the conditional one.
        null_condition: a tensor with batch size 1 is repeated over the batch; anything else passes as it is.
        interval: times (low, high), ends included, where w applies; outside it w is 1
            (Kynkaanniemi et al., 2024).
    """

    null_condition: Condition

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        guidance_scale: float,
        null_condition: Condition = None,
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if interval is not None and not interval[0] < interval[1]:
            raise ValueError(f"interval={interval} is empty; give (low, high) with low < high")
        self.denoiser = denoiser
        self.guidance_scale = guidance_scale
        self.interval = interval
        if isinstance(null_condition, Tensor):
            self.register_buffer("null_condition", null_condition, persistent=False)
        else:
            self.null_condition = null_condition

    @property
    def path(self) -> Path:
        return self.denoiser.path

    def forward(
        self, x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch *leading"], condition: Condition
    ) -> Float[Tensor, " batch *event"]:
        inside = self._inside(t)
        if self.guidance_scale == 1 or not bool(inside.any()):
            return self.denoiser(x_t, t, condition)
        null = self._null_for(len(x_t))
        if self.guidance_scale == 0 and bool(inside.all()):
            return self.denoiser(x_t, t, null)
        x0_condition, x0_null = self._both(x_t, t, condition, null)
        # Extrapolation amplifies rounding, so it is never done in half precision.
        precise = torch.promote_types(x0_null.dtype, torch.float32)
        gap = x0_condition.to(precise) - x0_null.to(precise)
        guided = (x0_null.to(precise) + self.guidance_scale * gap).to(x_t.dtype)
        return torch.where(append_dims(inside, x_t), guided, x0_condition)

    def _inside(self, t: Tensor) -> Tensor:
        low, high = self.interval or (-torch.inf, torch.inf)
        return (t >= low) & (t <= high)

    def _null_for(self, batch_size: int) -> Condition:
        null = self.null_condition
        if isinstance(null, Tensor) and len(null) == 1:
            return null.expand(batch_size, *null.shape[1:])
        return null

    def _both(self, x_t: Tensor, t: Tensor, condition: Condition, null: Condition) -> tuple[Tensor, Tensor]:
        if (
            isinstance(condition, Tensor)
            and isinstance(null, Tensor)
            and condition.shape == null.shape
            and condition.dtype == null.dtype
        ):
            both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([condition, null]))
            x0_condition, x0_null = both.chunk(2)
            return x0_condition, x0_null
        return self.denoiser(x_t, t, condition), self.denoiser(x_t, t, null)
