"""Many-step solvers of the probability flow ODE, for teachers."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Condition, Denoiser

Progress = Callable[[int, int], None]
"""Called after every step with the number of steps done and their total."""

Times = Float[Tensor, " steps"] | Sequence[float]
"""Descending, first the time of ``x_t``, last usually 0: ``fewstep.core.schedules.uniform_grid``."""


def euler(
    denoiser: Denoiser,
    x_t: Float[Tensor, " batch *event"],
    times: Times,
    condition: Condition,
    *,
    progress: Progress | None = None,
) -> Float[Tensor, " batch *event"]:
    """First order, one call of the denoiser per step; on the linear path the same as DDIM."""
    grid, x = _start(x_t, times)
    for step in range(len(grid) - 1):
        t, t_next = grid[step], grid[step + 1]
        velocity = _velocity(denoiser, x, t, condition, x_t.dtype)
        x = x + (t_next - t) * velocity
        _report(progress, step, grid)
    return x.to(x_t.dtype)


def heun(
    denoiser: Denoiser,
    x_t: Float[Tensor, " batch *event"],
    times: Times,
    condition: Condition,
    *,
    progress: Progress | None = None,
) -> Float[Tensor, " batch *event"]:
    """Second order (Karras et al., 2022, alg. 1): two calls per step, one for a last one into sigma 0."""
    grid, x = _start(x_t, times)
    for step in range(len(grid) - 1):
        t, t_next = grid[step], grid[step + 1]
        velocity = _velocity(denoiser, x, t, condition, x_t.dtype)
        x_next = x + (t_next - t) * velocity
        if denoiser.path.sigma(t_next) > 0:
            velocity_next = _velocity(denoiser, x_next, t_next, condition, x_t.dtype)
            x_next = x + (t_next - t) * (velocity + velocity_next) / 2
        x = x_next
        _report(progress, step, grid)
    return x.to(x_t.dtype)


def dpmpp_2m(
    denoiser: Denoiser,
    x_t: Float[Tensor, " batch *event"],
    times: Times,
    condition: Condition,
    *,
    progress: Progress | None = None,
) -> Float[Tensor, " batch *event"]:
    r"""DPM-Solver++(2M) (Lu et al., 2022, algorithm 2): second order at one call per step.

    With :math:`h = \log\eta_t - \log\eta_{t'}`, extrapolates :math:`\hat x_0` from the last two calls. The
    first step, one after alpha 0 and one into sigma 0 have no such h and are DDIM's.
    """
    path = denoiser.path
    grid, x = _start(x_t, times)
    x0_previous, h_previous = None, None
    for step in range(len(grid) - 1):
        t, t_next = grid[step], grid[step + 1]
        x0 = denoiser(x.to(x_t.dtype), t.expand(len(x)), condition).to(x.dtype)
        shrink = path.sigma(t_next) / path.sigma(t)
        h = path.eta(t).log() - path.eta(t_next).log()
        extrapolated = x0
        if x0_previous is not None and h_previous is not None and h.isfinite():
            extrapolated = x0 + h / (2 * h_previous) * (x0 - x0_previous)
        # alpha' - shrink alpha is -alpha' (exp(-h) - 1), and finite at both ends.
        x = shrink * x + (path.alpha(t_next) - shrink * path.alpha(t)) * extrapolated
        x0_previous, h_previous = x0, h
        _report(progress, step, grid)
    return x.to(x_t.dtype)


def _start(x_t: Tensor, times: Times) -> tuple[Tensor, Tensor]:
    """The grid and the running sample in the precision of the loop, at least float32."""
    precise = torch.promote_types(x_t.dtype, torch.float32)
    grid = torch.as_tensor(times, dtype=precise, device=x_t.device)
    if len(grid) < 2 or not bool((grid.diff() < 0).all()):
        raise ValueError(
            f"times={[round(t, 4) for t in grid.tolist()]} must be two or more, strictly descending"
        )
    return grid, x_t.to(precise)


def _velocity(denoiser: Denoiser, x: Tensor, t: Tensor, condition: Condition, dtype: torch.dtype) -> Tensor:
    x0 = denoiser(x.to(dtype), t.expand(len(x)), condition).to(x.dtype)
    return denoiser.path.velocity_from_x0(x0, x, t)


def _report(progress: Progress | None, step: int, grid: Tensor) -> None:
    if progress is not None:
        progress(step + 1, len(grid) - 1)
