"""Consistency distillation and training as in LCM (Luo et al., 2023, arXiv 2310.04378)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Turn, given
from fewstep.core.objectives.trajectories import Source, teacher_on
from fewstep.core.paths import Path
from fewstep.core.schedules import uniform_grid

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]


def boundary_scalings(t: PerSample, *, sigma_data: float, time_scale: float) -> tuple[PerSample, PerSample]:
    r""":math:`c_{skip}` and :math:`c_{out}`, 1 and 0 at t = 0 and almost 0 and 1 from the first step on.

    .. math:: c_{skip} = \frac{\sigma_d^2}{k^2 + \sigma_d^2}, \quad
        c_{out} = \frac{k}{\sqrt{k^2 + \sigma_d^2}}

    with k = ``time_scale`` t; LCM's is 10 times the timestep, 10,000 t.
    """
    k = time_scale * t
    return sigma_data**2 / (k**2 + sigma_data**2), k / (k**2 + sigma_data**2).sqrt()


def ddim_step(x0: X, x_t: X, path: Path, t: PerSample, s: PerSample, layout: Layout = DENSE) -> X:
    r""":math:`\alpha_s \hat x_0 + \sigma_s \hat\epsilon` with the noise that ``x0`` implies at ``x_t``."""
    eps = path.eps_from_x0(x0, x_t, layout.expand(t, x_t))
    return path.add_noise(x0, eps, layout.expand(s, x_t))


def distances(error: X, *, huber: float | None, layout: Layout = DENSE) -> PerSample:
    r"""Pseudo-Huber :math:`\sqrt{e^2 + c^2} - c` of each element, averaged; None for the square."""
    if huber is None:
        return layout.mean(error.square())
    return layout.mean((error.square() + huber**2).sqrt() - huber)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One interval of the grid per sample, and a point of the same trajectory at either end."""

    x_t: X
    t: PerSample
    x_s: X
    s: PerSample


@dataclass(frozen=True, kw_only=True)
class LCM(Objective):
    r"""What the student says at one end of a teacher's step is what its average says at the other.

    .. math:: L = d(f_\theta(x_t, t),\ f_{\theta^-}(\hat x_s, s)), \quad
        f(x, t) = c_{skip}(t)\, x + c_{out}(t)\, \hat x_0(x, t)

    with :math:`\hat x_s` one DDIM step of the (guided) teacher down a grid of times, on any path. At the end
    of the grid f is the sample itself. Generation calls the student without the scalings: at the
    times of a few steps they are 0 and 1 to six digits. The paper's embedding of the guidance scale into the
    student is left out: the scale is the teacher's.

    Args:
        source: ``teacher`` is consistency distillation; ``data`` consistency training, where
            :math:`x_s` has the sample and noise of :math:`x_t` (Song et al., 2023).
        num_steps: even intervals of the grid from 1 to 0; 50 timesteps 20 apart in LCM.
        shift: of the grid, see ``fewstep.core.schedules.shift``.
        times: a grid of your own instead, descending to above 0; the 0 is added.
        sigma_data: of the scalings.
        time_scale: of the scalings.
        huber: c of the pseudo-Huber distance; None for the squared error.
    """

    source: Source = "teacher"
    num_steps: int = 50
    shift: float = 1.0
    times: tuple[float, ...] | None = None
    sigma_data: float = 0.5
    time_scale: float = 1e4
    huber: float | None = 1e-3

    def __post_init__(self) -> None:
        grid = self.grid
        if len(grid) < 2 or not bool((grid.diff() < 0).all()) or grid[-2] <= 0:
            raise ValueError(
                f"num_steps={self.num_steps}, times={self.times} give no grid; times must descend to above 0"
            )
        if self.huber is not None and self.huber <= 0:
            raise ValueError(f"huber={self.huber} must be above 0, or None for the squared error")

    @property
    def grid(self) -> Float[Tensor, " steps"]:
        """All times, descending, with the 0 at the end. Float64."""
        if self.times is None:
            return uniform_grid(self.num_steps, scale=self.shift)
        return torch.tensor([*self.times, 0.0], dtype=torch.float64)

    @property
    def needs(self) -> frozenset[Need]:
        needs: set[Need] = {"student", "target", "data"}
        if self.source == "teacher":
            needs.add("teacher")
        return frozenset(needs)

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        student, data = given(turn.student, "student", self), given(turn.data, "data", self)
        ends = self.interval(turn, student.path)
        x0_hat = student(ends.x_t, data.layout.times(ends.t), data.condition)
        prediction = self.consistency(x0_hat, ends.x_t, ends.t, data.layout)
        return self.compare(turn, prediction, ends)

    @torch.no_grad()
    def interval(self, turn: Turn, path: Path) -> Interval:
        """An interval drawn for each sample of the data, and the step across it."""
        data = given(turn.data, "data", self)
        x0, layout = data.x0, data.layout
        share = turn.uniform(layout.batch_size(x0), x0.device)
        grid = self.grid.to(share)
        index = (share * (len(grid) - 1)).long().clamp(max=len(grid) - 2)
        t, s, eps = grid[index], grid[index + 1], turn.noise_like(x0)
        x_t = path.add_noise(x0, eps, layout.expand(t, x0))
        if self.source == "data":
            return Interval(x_t=x_t, t=t, x_s=path.add_noise(x0, eps, layout.expand(s, x0)), s=s)
        x0_hat = teacher_on(path, turn, self)(x_t, layout.times(t), data.condition)
        return Interval(x_t=x_t, t=t, x_s=ddim_step(x0_hat, x_t, path, t, s, layout), s=s)

    def consistency(self, x0_hat: X, x_t: X, t: PerSample, layout: Layout) -> X:
        """f of a denoiser's answer, in float32 or better."""
        precise = torch.promote_types(x_t.dtype, torch.float32)
        c_skip, c_out = boundary_scalings(t, sigma_data=self.sigma_data, time_scale=self.time_scale)
        return layout.expand(c_skip, x_t) * x_t.to(precise) + layout.expand(c_out, x_t) * x0_hat.to(precise)

    def compare(self, turn: Turn, prediction: X, ends: Interval) -> tuple[Float[Tensor, ""], Diagnostics]:
        """The loss of a prediction against the average's at the other end of the interval."""
        data, average = given(turn.data, "data", self), given(turn.target, "target", self)
        layout = data.layout
        with torch.no_grad():
            x0_hat = average(ends.x_s, layout.times(ends.s), data.condition)
            target = self.consistency(x0_hat, ends.x_s, ends.s, layout)
        error = prediction - target
        diagnostics = {"error_rms": layout.mean(error.detach().square()).mean().sqrt()}
        return distances(error, huber=self.huber, layout=layout).mean(), diagnostics
