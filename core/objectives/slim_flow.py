"""Reflow from pairs, and SlimFlow's two steps to a small student (Zhu et al., 2024, arXiv 2407.12718)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Condition, Denoiser
from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Data, Diagnostics, Need, Objective, Turn, given
from fewstep.core.objectives.flow_matching import LOWEST_TIME, denoising_error
from fewstep.core.objectives.trajectories import teacher_on
from fewstep.core.paths import LinearPath
from fewstep.core.samplers import Times, heun
from fewstep.core.schedules import TimeSampler, UniformTimes

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]

Annealing = Literal["linear", "exponential", "cosine"]
Sampler = Callable[[Denoiser, Tensor, Times, Condition], Tensor]


@torch.no_grad()
def reflow_pairs(
    teacher: Denoiser,
    noise: X,
    condition: Condition,
    *,
    times: Times,
    sampler: Sampler = heun,
    layout: Layout = DENSE,
) -> Data:
    """The teacher's samples, each with the standard noise that it came from, to store or to train on.

    The teacher may be on any path: a pair is noise and sample, whatever lies between.

    Args:
        times: of the solver, from 1 (or the teacher's noisiest time) to 0.
        sampler: one of ``fewstep.core.samplers``; it must be deterministic.
    """
    precise = torch.promote_types(noise.dtype, torch.float32)
    start = torch.as_tensor(times, dtype=precise, device=noise.device)[0]
    x_t = (teacher.path.sigma(start) * noise).to(noise.dtype)
    return Data(x0=sampler(teacher, x_t, times, condition), condition=condition, layout=layout, noise=noise)


def annealing_rate(update: int, *, updates: int, annealing: Annealing = "linear") -> float:
    """The share of fresh noise, from 1 at update 0 towards 0; 0 throughout for ``updates=0``."""
    done = update / updates if updates else math.inf
    match annealing:
        case "linear":
            return 1 - min(1.0, done)
        case "exponential":
            return math.exp(-done)
        case "cosine":
            return (1 + math.cos(math.pi * min(1.0, done))) / 2


def annealed_noise(noise: X, fresh: X, rate: float) -> X:
    r"""Noise of unit variance between a pair's own and none of it, :math:`\sqrt{1 - r^2}\, z + r\, \xi`."""
    return math.sqrt(1 - rate**2) * noise + rate * fresh


@dataclass(frozen=True, kw_only=True)
class AnnealingReflow(Objective):
    r"""Straighten the teacher's flow: flow matching on its own pairs of noise and sample.

    .. math:: L = \| u_\theta((1 - t) x + t z', t) - (z' - x) \|^2, \quad z' = \sqrt{1 - r^2}\, z + r\, \xi

    At r = 1 this is flow matching on samples and noise that do not belong together, what a new, small student
    must learn first; at r = 0 it is reflow (Liu et al., 2022), whose flow is nearly straight. r falls from 1
    to 0 over training, so that a student with fewer weights than the teacher, which cannot start from them,
    needs no training of its own before reflow.

    The paper also flips a pair, noise and image together, at random; that is the data module's.

    Args:
        updates: of the student until r = 0; 300,000 in the paper. 0 is plain reflow.
        annealing: how r falls. ``exponential`` never reaches 0.
        times: of t.
    """

    updates: int = 300_000
    annealing: Annealing = "linear"
    times: TimeSampler = field(default_factory=lambda: UniformTimes(low=LOWEST_TIME))

    def __post_init__(self) -> None:
        if self.updates < 0:
            raise ValueError(f"updates={self.updates} must not be negative; 0 is reflow without annealing")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"student", "data"})

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        student, data = _linear_student(turn, self), given(turn.data, "data", self)
        noise, layout = noise_of(data, self), data.layout
        rate = annealing_rate(turn.update, updates=self.updates, annealing=self.annealing)
        t = turn.times(self.times, data.x0, layout)
        eps = annealed_noise(noise, turn.noise_like(noise), rate)
        error = denoising_error(student, data.x0, eps, t, data.condition, layout=layout)
        scale = layout.expand(student.path.error_scale(t, "velocity"), error)
        loss = layout.mean((scale * error).square()).mean()
        return loss, {"annealing_rate": loss.new_tensor(rate), "velocity_error_rms": loss.detach().sqrt()}


@dataclass(frozen=True, kw_only=True)
class FlowGuidedDistillation(Objective):
    r"""One step to the pairs' samples, and on fresh noise to where two steps of the teacher lead.

    With the one-step sample :math:`\hat x_0(z) = z - u_\theta(z, 1)`,

    .. math:: L = \| \hat x_0(z) - x \|^2 + \lambda\, \| \hat x_0(\tilde z) -
        \mathrm{sg}[\hat x_0^{teacher}(x_t, t)] \|^2, \quad x_t = (1 - t)\, x_1 + t\, \tilde z

    The teacher is the straightened flow of ``AnnealingReflow``. If it is straight, the second term is 0 at
    the student that fits the pairs, and it covers noise for which there is no pair.

    The distance is the mean square; the paper's LPIPS needs pixels and a network of its own, so it is not
    here.

    Args:
        weight: lambda.
        first_leg: what :math:`x_1`, the end of the first step, is. ``student``: :math:`\hat x_0(\tilde z)`,
            what the released code runs. ``teacher``: the teacher's own from t = 1, which the code has too;
            one call more.
        times: of t, where the second step begins.
    """

    weight: float = 1.0
    first_leg: Literal["student", "teacher"] = "student"
    times: TimeSampler = field(default_factory=lambda: UniformTimes(low=0.2, high=0.8))

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} must not be negative; 0 distils from the pairs alone")

    @property
    def needs(self) -> frozenset[Need]:
        teacher: set[Need] = {"teacher"} if self.weight else set()
        return frozenset({"student", "data", *teacher})

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        student, data = _linear_student(turn, self), given(turn.data, "data", self)
        noise, layout = noise_of(data, self), data.layout
        precise = torch.promote_types(noise.dtype, torch.float32)
        ones = noise.new_ones(layout.batch_size(noise), dtype=precise)
        pair_error = student(noise, layout.times(ones), data.condition).to(precise) - data.x0.to(precise)
        pairs = layout.mean(pair_error.square()).mean()
        if self.weight == 0:
            return pairs, {"pair_error_rms": pairs.detach().sqrt()}

        fresh, t = turn.noise_like(noise), turn.times(self.times, noise, layout)
        x0_hat = student(fresh, layout.times(ones), data.condition)
        with torch.no_grad():
            teacher = teacher_on(student.path, turn, self)
            own = self.first_leg == "teacher"
            end = teacher(fresh, layout.times(ones), data.condition) if own else x0_hat
            x_t = student.path.add_noise(end, fresh, layout.expand(t, fresh))
            target = teacher(x_t, layout.times(t), data.condition).to(precise)
        guidance = layout.mean((x0_hat.to(precise) - target).square()).mean()
        diagnostics = {
            "pair_error_rms": pairs.detach().sqrt(),
            "guidance_error_rms": guidance.detach().sqrt(),
        }
        return pairs + self.weight * guidance, diagnostics


def noise_of(data: Data, objective: Objective) -> Tensor:
    """The noise of each sample, or a ValueError that says how to make pairs."""
    if data.noise is None:
        raise ValueError(
            f"{type(objective).__name__} needs pairs, but data.noise is None; make them with reflow_pairs"
        )
    return data.noise


def _linear_student(turn: Turn, objective: Objective) -> Denoiser:
    student = given(turn.student, "student", objective)
    if not isinstance(student.path, LinearPath):
        raise ValueError(
            f"{type(objective).__name__} needs a student on a linear path, got {student.path}; a student "
            "starts from new weights, so use NetworkDenoiser's own path"
        )
    return student
