"""How a few-step student turns noise into a sample, and where the gradient enters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Condition, Denoiser, FlowMap
from fewstep.core.layouts import append_dims
from fewstep.core.paths import LinearPath

Noises = Callable[[int], Tensor]
"""The fresh noise after the step of this number, in the shape of the sample."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """The last call of a rollout: what the student was given, and where generation goes on from there.

    Args:
        x_t: in the shape of the sample.
        t: its time [B].
        t_next: the time [B] of the next step, 0 after the last one.
    """

    x_t: Tensor
    t: Float[Tensor, " batch"]
    t_next: Float[Tensor, " batch"]


@dataclass(frozen=True)
class FewStep:
    r"""Denoise to :math:`\hat x_0`, noise it to the next time, and again.

    With ``exit_step`` this is DMD2's backward simulation: the student meets in training the inputs it makes
    for itself in generation, and only its last call carries a gradient.

    Args:
        times: descending, from 1.0 or less, without the trailing 0 (``fewstep.core.schedules.step_grid``).
            Starting below 1.0 the first input is noise of that time's scale, as if of a sample of zeros.
        renoise: ``fresh`` noise at every step, as consistency models and DMD2; ``ddim`` reuses the noise that
            the prediction implies, which makes the rollout a deterministic function of its noise.
        noise_scale: factor on all noise that is drawn, while the times that the student is told stay. Below 1
            in generation it trades diversity for order (noise modulation: SiD's students of Proteina are
            trained at 1 and used at 0.45).
    """

    times: tuple[float, ...]
    renoise: Literal["fresh", "ddim"] = "fresh"
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(self.times))
        descending = all(later < earlier for earlier, later in zip(self.times, self.times[1:], strict=False))
        if not self.times or not descending or self.times[-1] <= 0:
            raise ValueError(
                f"times={self.times} must descend strictly and end above 0; try step_grid(4, 5.0)"
            )
        if self.noise_scale < 0:
            raise ValueError(
                f"noise_scale={self.noise_scale} must be at least 0; 1 leaves the noise as it is"
            )

    def draw_exit_step(self, generator: torch.Generator | None = None) -> int:
        """A uniformly random index into ``times``; draw it once for all ranks and chunks of an iteration."""
        device = None if generator is None else generator.device
        return int(torch.randint(len(self.times), (), generator=generator, device=device))

    def rollout(
        self,
        denoiser: Denoiser,
        noise: Float[Tensor, " batch *event"],
        condition: Condition,
        *,
        exit_step: int | None = None,
        generator: torch.Generator | None = None,
        noises: Noises | None = None,
    ) -> Float[Tensor, " batch *event"]:
        """The student's ``x0`` at ``exit_step`` (by default the last step), with the gradient of that call.

        Args:
            noise: standard Gaussian; scaled to the path's sigma at the first time, and by ``noise_scale``.
            generator: of the fresh noises, on the device of ``noise``.
            noises: the fresh noises themselves, where each sample of a batch has a seed of its own.
        """
        return self.rollout_and_call(
            denoiser, noise, condition, exit_step=exit_step, generator=generator, noises=noises
        )[0]

    def rollout_and_call(
        self,
        denoiser: Denoiser,
        noise: Float[Tensor, " batch *event"],
        condition: Condition,
        *,
        exit_step: int | None = None,
        generator: torch.Generator | None = None,
        noises: Noises | None = None,
        unroll: bool = False,
    ) -> tuple[Float[Tensor, " batch *event"], Call]:
        """``rollout``, and the call that gave its result; ``unroll`` keeps the gradient of all calls."""
        last = len(self.times) - 1 if exit_step is None else exit_step
        if not 0 <= last < len(self.times):
            raise ValueError(f"exit_step={exit_step} is not one of the {len(self.times)} steps; count from 0")
        with torch.set_grad_enabled(unroll and torch.is_grad_enabled()):
            x_t = _first_input(denoiser, self.times[0], noise) * self.noise_scale
            for step in range(last):
                x0 = denoiser(x_t, self._time(step, x_t), condition)
                x_t = self._renoise(denoiser, x0, x_t, step, generator, noises)
        _forget_cast_weights(last, unroll)
        t, t_next = self._time(last, x_t), self._time(last + 1, x_t)
        return denoiser(x_t, t, condition), Call(x_t=x_t, t=t, t_next=t_next)

    def _time(self, step: int, x_t: Tensor) -> Tensor:
        precise = torch.promote_types(x_t.dtype, torch.float32)
        time = (*self.times, 0.0)[step]
        return torch.full((len(x_t),), time, dtype=precise, device=x_t.device)

    def _renoise(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        x_t: Tensor,
        step: int,
        generator: torch.Generator | None,
        noises: Noises | None,
    ) -> Tensor:
        precise = torch.promote_types(x_t.dtype, torch.float32)
        t, t_next = torch.tensor(self.times[step : step + 2], dtype=precise, device=x_t.device).unbind()
        if self.renoise == "fresh" and noises is not None:
            eps = self.noise_scale * noises(step).to(x0)
        elif self.renoise == "fresh":
            eps = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
            eps = self.noise_scale * eps
        else:
            eps = denoiser.path.eps_from_x0(x0, x_t, t)
        return denoiser.path.add_noise(x0, eps, t_next)


@dataclass(frozen=True)
class FlowMapSteps:
    r"""Jump from each time of a grid to the next, :math:`x_r = x_t - (t - r)\,\bar u(x_t, t, r)`, down to 0.

    For students of two times (``FlowMap``) on the linear path. No noise is drawn after the first. With
    ``exit_step`` the jump from that step goes to 0 at once, and only that call carries a gradient.

    Args:
        times: descending, from 1.0, without the trailing 0 (``fewstep.core.schedules.step_grid``).
    """

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", FewStep(self.times).times)

    def draw_exit_step(self, generator: torch.Generator | None = None) -> int:
        """See ``FewStep.draw_exit_step``."""
        return FewStep(self.times).draw_exit_step(generator)

    def rollout(
        self,
        student: Denoiser,
        noise: Float[Tensor, " batch *event"],
        condition: Condition,
        *,
        exit_step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch *event"]:
        """The student's sample by way of ``exit_step`` (by default the last step); ``generator`` is not used.

        Args:
            noise: standard Gaussian; scaled to the path's sigma at the first time.
        """
        return self.rollout_and_call(student, noise, condition, exit_step=exit_step, generator=generator)[0]

    def rollout_and_call(
        self,
        student: Denoiser,
        noise: Float[Tensor, " batch *event"],
        condition: Condition,
        *,
        exit_step: int | None = None,
        generator: torch.Generator | None = None,
        unroll: bool = False,
    ) -> tuple[Float[Tensor, " batch *event"], Call]:
        """``rollout``, and the call that gave its result; ``unroll`` keeps the gradient of all calls."""
        if not isinstance(student, FlowMap) or not isinstance(student.path, LinearPath):
            raise ValueError(
                f"student {type(student).__name__} is no FlowMap on a linear path; wrap its network in "
                "NetworkFlowMap or roll it out with FewStep"
            )
        last = len(self.times) - 1 if exit_step is None else exit_step
        if not 0 <= last < len(self.times):
            raise ValueError(f"exit_step={exit_step} is not one of the {len(self.times)} steps; count from 0")
        precise = torch.promote_types(noise.dtype, torch.float32)
        grid = torch.tensor((*self.times, 0.0), dtype=precise, device=noise.device)
        times = grid[:, None].expand(-1, len(noise))
        with torch.set_grad_enabled(unroll and torch.is_grad_enabled()):
            x_t = _first_input(student, self.times[0], noise)
            for step in range(last):
                x_t = _jump(student, x_t, times[step], times[step + 1], condition)
        _forget_cast_weights(last, unroll)
        call = Call(x_t=x_t, t=times[last], t_next=times[last + 1])
        return _jump(student, x_t, times[last], times[-1], condition), call


def _first_input(denoiser: Denoiser, t: float, noise: Tensor) -> Tensor:
    """``noise`` at the path's scale at ``t``, which is computed in float32 or better."""
    precise = torch.promote_types(noise.dtype, torch.float32)
    sigma = denoiser.path.sigma(torch.tensor(t, dtype=precise, device=noise.device))
    return (sigma * noise.to(precise)).to(noise.dtype)


def _forget_cast_weights(calls: int, unroll: bool) -> None:
    """Older torch has the weights that autocast cast under no_grad serve the last call too, which then has no
    gradient.
    """
    if calls and not unroll and torch.is_grad_enabled():
        torch.clear_autocast_cache()


def _jump(student: FlowMap, x_t: Tensor, t: Tensor, r: Tensor, condition: Condition) -> Tensor:
    precise = torch.promote_types(x_t.dtype, torch.float32)
    velocity = student.average_velocity(x_t, t, r, condition).to(precise)
    return (x_t.to(precise) - append_dims(t - r, x_t) * velocity).to(x_t.dtype)
