"""SiD end to end: affine students of one and several steps find the teacher, and faulty ones do not."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import Denoiser
from fewstep.core.layouts import append_dims
from fewstep.core.objectives.contract import Sample, Turn
from fewstep.core.objectives.sid import SiD
from fewstep.core.paths import LinearPath, Path
from fewstep.core.rollouts import FewStep
from fewstep.core.schedules import TimeSampler, UniformTimes
from tests.core.objectives.known_numbers import GivenNoise

MEAN, STD = 1.3, 0.7
TEACHER = GaussianDenoiser(mean=MEAN, std=STD)
CRITIC = GaussianDenoiser(mean=0.4, std=1.1)
ALPHAS = (0.5, 1.0, 1.2, 1.5, 2.0)
STEPS, LR = 120, 4e-2


def corners() -> tuple[Tensor, Tensor]:
    """z and eps at +-1: over these four a mean integrates any quadratic of two standard Gaussians."""
    signs = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    return signs[0, :, None], signs[1, :, None]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@dataclass(frozen=True)
class Blocked:
    """A denoiser through which no gradient passes."""

    denoiser: Denoiser
    path: Path = field(default_factory=LinearPath)

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.denoiser(x_t, t, condition).detach()


def recovered(
    objective: SiD,
    *,
    exact: bool = True,
    wrap: tuple[Callable[[Denoiser], Denoiser], Callable[[Denoiser], Denoiser]] | None = None,
    stale: bool = False,
) -> tuple[float, float]:
    """Mean and width of a student mu + v z, from (0.4, 1.1), each step against its exact critic.

    ``exact`` takes expectations over z and eps by their corners, at 9 times; else it draws 4096 samples.
    """
    mu, v = scalar(0.4), scalar(1.1)
    wrap_teacher, wrap_critic = wrap or (lambda it: it, lambda it: it)
    optimiser = torch.optim.Adam([mu, v], lr=LR, betas=(0.0, 0.99))
    z, eps = (values.repeat_interleave(9, 0) for values in corners())
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = LR * (1 - step / STEPS)
        if not exact:
            z, eps = torch.randn(2, 4096, 1, generator=generator, dtype=torch.float64)
        critic = CRITIC if stale else GaussianDenoiser(mean=mu.detach(), std=v.detach())
        turn = GivenNoise(
            sample=Sample(x=mu + v * z), teacher=wrap_teacher(TEACHER), critic=wrap_critic(critic), eps=eps
        )
        optimiser.zero_grad()
        objective.student_loss(turn)[0].backward()
        optimiser.step()
    return mu.item(), abs(v.item())


NINE_TIMES = tuple((n + 0.5) / 9 for n in range(9))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_an_affine_student_finds_the_teacher(alpha: float, fixed_times: Callable[..., TimeSampler]) -> None:
    ends = recovered(SiD(alpha=alpha, weighting="none", times=fixed_times(*NINE_TIMES)))
    assert ends == pytest.approx((MEAN, STD), abs=0.01)


def test_an_affine_student_finds_the_teacher_under_the_default_weight_and_drawn_noise() -> None:
    assert recovered(SiD(), exact=False) == pytest.approx((MEAN, STD), abs=0.01)


def test_the_legacy_weight_does_not_shrink_a_student_of_one_dimension() -> None:
    """It depends on x given x_t, so that E[x - D_f | x_t] = 0 no longer carries the student home."""
    times = UniformTimes(low=0.02, high=0.98)
    _, width = recovered(SiD(alpha=1.2, weighting="mean_abs", times=times), exact=False)
    assert width > 1.1
    assert recovered(SiD(alpha=1.2, weighting="none", times=times), exact=False)[1] < 0.71


@pytest.mark.parametrize("blocked", ["teacher", "critic"])
def test_a_passage_through_one_network_alone_misses(
    blocked: str, fixed_times: Callable[..., TimeSampler]
) -> None:
    through: Callable[[Denoiser], Denoiser] = lambda denoiser: denoiser  # noqa: E731
    wrap = (Blocked, through) if blocked == "teacher" else (through, Blocked)
    _, width = recovered(SiD(weighting="none", times=fixed_times(*NINE_TIMES)), wrap=wrap)
    assert abs(width - STD) > 0.1


def test_a_critic_that_is_never_updated_misses(fixed_times: Callable[..., TimeSampler]) -> None:
    mean, width = recovered(SiD(weighting="none", times=fixed_times(*NINE_TIMES)), stale=True)
    assert max(abs(mean - MEAN), abs(width - STD)) > 0.2


class Steps(nn.Module):
    """x0 = slope_k x_t + offset_k with parameters of its own for each step of a grid."""

    def __init__(self, times: tuple[float, ...]) -> None:
        super().__init__()
        self.path = LinearPath()
        self.times = times
        self.slopes = nn.ParameterList([torch.tensor(0.6, dtype=torch.float64) for _ in times])
        self.offsets = nn.ParameterList([torch.tensor(0.4, dtype=torch.float64) for _ in times])

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        k = self.times.index(float(t[0]))
        return self.slopes[k] * x_t + self.offsets[k]

    def outputs(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and variance after each step of a rollout with fresh noise."""
        mean, variance = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        outputs = []
        for k, (slope, offset) in enumerate(zip(self.slopes, self.offsets, strict=True)):
            mean, variance = slope * mean + offset, slope**2 * variance
            outputs.append((mean, variance))
            if k + 1 < len(self.times):
                t = self.times[k + 1]
                mean, variance = (1 - t) * mean, (1 - t) ** 2 * variance + t**2
        return outputs


@pytest.mark.parametrize("exit_step", [0, 1, 2, 3])
def test_a_rollout_that_exits_at_a_step_trains_that_call_alone(exit_step: int) -> None:
    """T-SID-4."""
    times = (1.0, 0.75, 0.5, 0.25)
    student = Steps(times)
    x = FewStep(times).rollout(student, torch.randn(8, 1, dtype=torch.float64), None, exit_step=exit_step)
    SiD().student_loss(Turn(sample=Sample(x=x), teacher=TEACHER, critic=CRITIC))[0].backward()
    for parameters in (student.slopes, student.offsets):
        reached = [parameter.grad is not None and bool(parameter.grad != 0) for parameter in parameters]
        assert reached == [k == exit_step for k in range(4)]


@dataclass(frozen=True)
class Mixture:
    """The exact denoiser of an even mixture of Gaussians: what a critic of all steps learns."""

    components: list[tuple[Tensor, Tensor]]
    path: Path = field(default_factory=LinearPath)

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        alpha, sigma = 1 - append_dims(t, x_t), append_dims(t, x_t)
        answers, log_weights = [], []
        for mean, variance in self.components:
            denoiser = GaussianDenoiser(mean=mean, std=variance.sqrt())
            total = alpha**2 * variance + sigma**2
            answers.append(denoiser(x_t, t, condition))
            log_weights.append(-((x_t - alpha * mean) ** 2) / (2 * total) - 0.5 * total.log())
        return (torch.stack(log_weights).softmax(0) * torch.stack(answers)).sum(0)


def test_the_uniform_mixture_of_all_steps_comes_to_have_the_moments_of_the_teacher() -> None:
    """For two steps of an affine student, and the exact critic of their mixture, which is told no step.

    That each step then samples the teacher follows from equality of the laws, not of two moments; two
    Gaussians at some distance are so near to one that no finite run tells.
    """
    times = (1.0, 0.5)
    student, rollout, generator = Steps(times), FewStep(times), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(student.parameters(), lr=LR, betas=(0.0, 0.99))
    for step in range(2 * STEPS):
        optimiser.param_groups[0]["lr"] = LR * (1 - step / (2 * STEPS))
        noise = torch.randn(1024, 1, generator=generator, dtype=torch.float64)
        exit_step = rollout.draw_exit_step(generator)
        x = rollout.rollout(student, noise, None, exit_step=exit_step, generator=generator)
        critic = Mixture([(mean.detach(), variance.detach()) for mean, variance in student.outputs()])
        turn = Turn(sample=Sample(x=x), teacher=TEACHER, critic=critic, generator=generator)
        optimiser.zero_grad()
        SiD().student_loss(turn)[0].backward()
        optimiser.step()
    means, variances = (torch.stack(values) for values in zip(*student.outputs(), strict=True))
    assert means.mean().item() == pytest.approx(MEAN, abs=0.02)
    spread = (variances.mean() + means.var(correction=0)).sqrt().item()
    assert spread == pytest.approx(STD, abs=0.02)
