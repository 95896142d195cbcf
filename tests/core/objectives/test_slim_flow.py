"""SlimFlow: annealed noise, reflow's pairs, guidance by a straight flow, and where students end."""

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import NetworkDenoiser, velocity_of
from fewstep.core.layouts import Packed, append_dims
from fewstep.core.objectives.contract import Data, Turn
from fewstep.core.objectives.slim_flow import (
    AnnealingReflow,
    FlowGuidedDistillation,
    annealed_noise,
    annealing_rate,
    reflow_pairs,
)
from fewstep.core.paths import LinearPath, Path, TrigFlowPath, VPPath
from fewstep.core.samplers import euler
from fewstep.core.schedules import TimeSampler, uniform_grid

MEAN, STD = 1.3, 0.7
TEACHER = GaussianDenoiser(mean=MEAN, std=STD)


def gaussian_pairs(count: int, seed: int = 0) -> Data:
    """What a perfect teacher of N(1.3, 0.7^2) makes of noise in one dimension."""
    z = torch.randn(count, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Data(x0=MEAN + STD * z, noise=z)


class Straight(nn.Module):
    """The flow after reflow: x_t = (1 - t) (1.3 + 0.7 z) + t z for every t. Returns x0."""

    path = LinearPath()

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        time = append_dims(t, x_t)
        z = (x_t - (1 - time) * MEAN) / ((1 - time) * STD + time)
        return MEAN + STD * z


class Linear(nn.Module):
    """A velocity a x + b t x + c, whatever the layout."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        a, b, c = self.weights
        return (a + b * append_dims(t, x_t)) * x_t + c


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_annealed_noise_has_unit_variance_and_forgets_the_pair(rate: float) -> None:
    """T-SF-1: variance 1, correlation sqrt(1 - r^2)."""
    z, fresh = torch.randn(2, 400_000, dtype=torch.float64)
    noise = annealed_noise(z, fresh, rate)
    assert noise.var().item() == pytest.approx(1, abs=0.012)  # five standard errors
    assert (noise * z).mean().item() == pytest.approx(math.sqrt(1 - rate**2), abs=0.012)


@pytest.mark.parametrize(("rate", "slope"), [(0.0, 0.700), (0.5, 0.6062), (1.0, 0.0)])
def test_one_step_from_noise_learns_less_of_the_pairs_the_fresher_the_noise(
    rate: float, slope: float, fixed_times: Callable[..., TimeSampler]
) -> None:
    """T-SF-2: the best one-step map has the slope s sqrt(1 - r^2); the loss is quadratic in its weights."""
    data, update = gaussian_pairs(100_000), round(1000 * (1 - rate))
    objective, gradients = AnnealingReflow(updates=1000, times=fixed_times(1.0)), []
    for weights in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        leaf = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
        student = NetworkDenoiser(OneStep(leaf), prediction="x0")
        turn = Turn(student=student, data=data, update=update, generator=torch.Generator().manual_seed(3))
        gradients.append(torch.autograd.grad(objective.student_loss(turn)[0], leaf)[0])
    hessian = torch.stack([gradients[1] - gradients[0], gradients[2] - gradients[0]], dim=1)
    found = torch.linalg.solve(hessian, -gradients[0])
    assert found.tolist() == pytest.approx([slope, MEAN], abs=0.012)  # five standard errors


class OneStep(nn.Module):
    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.weights[0] * x_t + self.weights[1]


@pytest.mark.parametrize(
    ("annealing", "rates"),
    [
        ("linear", (1.0, 0.75, 0.0, 0.0)),
        ("exponential", (1.0, math.exp(-0.25), math.exp(-1), math.exp(-2))),
        ("cosine", (1.0, (1 + math.sqrt(0.5)) / 2, 0.0, 0.0)),
    ],
)
def test_the_share_of_fresh_noise_falls_as_published(
    annealing: Literal["linear", "exponential", "cosine"], rates: tuple[float, ...]
) -> None:
    found = [annealing_rate(update, updates=400, annealing=annealing) for update in (0, 100, 400, 800)]
    assert found == pytest.approx(rates)
    assert annealing_rate(0, updates=0, annealing=annealing) == pytest.approx(0, abs=1e-12)


def test_the_loss_is_flow_matching_between_a_sample_and_its_noise(known_turn: Callable[..., Any]) -> None:
    """Written out: the velocity that is asked for is z' - x."""
    network, (x0, z) = Linear(), torch.randn(2, 5, 3, dtype=torch.float64)
    objective = AnnealingReflow(updates=10)
    make = lambda: known_turn(  # noqa: E731
        x0, student=NetworkDenoiser(network), data=Data(x0=x0, noise=z), update=4
    )
    loss, diagnostics = objective.student_loss(make())
    (found,) = torch.autograd.grad(loss, network.weights)

    turn = make()
    t = turn.times(objective.times, x0, Data(x0=x0).layout)
    noise = 0.8 * z + 0.6 * turn.noise_like(z)
    x_t = (1 - t[:, None]) * x0 + t[:, None] * noise
    expected = (network(x_t, t, None) - (noise - x0)).square().mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, network.weights)[0])
    assert diagnostics["annealing_rate"].item() == pytest.approx(0.6)
    assert diagnostics["velocity_error_rms"].item() == pytest.approx(expected.item() ** 0.5)


def test_reflow_without_annealing_draws_no_noise_into_the_pairs(
    fixed_times: Callable[..., TimeSampler],
) -> None:
    data, objective = gaussian_pairs(16), AnnealingReflow(updates=0, times=fixed_times(0.3))
    losses = []
    for seed in (0, 1):
        turn = Turn(student=Straight(), data=data, generator=torch.Generator().manual_seed(seed))
        losses.append(objective.student_loss(turn)[0].item())
    assert losses == pytest.approx([0, 0], abs=1e-20)


def test_a_perfectly_straight_teacher_asks_nothing_of_the_student_that_fits_its_pairs(
    fixed_times: Callable[..., TimeSampler],
) -> None:
    """T-SF-3."""
    for first_leg in ("student", "teacher"):
        turn = Turn(student=Straight(), teacher=Straight(), data=gaussian_pairs(64))
        loss, diagnostics = FlowGuidedDistillation(
            first_leg=first_leg, times=fixed_times(0.2, 0.5, 0.8)
        ).student_loss(turn)
        assert loss.item() < 1e-24
        assert diagnostics["guidance_error_rms"].item() < 1e-12


def test_a_bent_teacher_does_ask_something() -> None:
    turn = Turn(student=Straight(), teacher=TEACHER, data=gaussian_pairs(64))
    assert FlowGuidedDistillation().student_loss(turn)[1]["guidance_error_rms"].item() > 0.05


@pytest.mark.parametrize("first_leg", ["student", "teacher"])
def test_guidance_is_the_second_of_two_steps_written_out(
    known_turn: Callable[..., Any], first_leg: Literal["student", "teacher"]
) -> None:
    """As the released code has it, in velocities from noise to data and times that run the other way."""
    network, (x0, z) = Linear(), torch.randn(2, 5, 3, dtype=torch.float64)
    objective = FlowGuidedDistillation(weight=0.3, first_leg=first_leg)
    roles = dict(student=NetworkDenoiser(network), teacher=TEACHER, data=Data(x0=x0, noise=z))
    loss, diagnostics = objective.student_loss(known_turn(x0, **roles))
    (found,) = torch.autograd.grad(loss, network.weights)

    turn, one = known_turn(x0, **roles), torch.ones(5, dtype=torch.float64)
    fresh, t = turn.noise_like(z), turn.times(objective.times, z, Data(x0=x0).layout)
    assert 0.2 <= t.min() < t.max() < 0.8
    tau = 1 - t[:, None]
    student_forward = -network(fresh, one, None)
    first = student_forward if first_leg == "student" else -velocity_of(TEACHER, fresh, one, None)
    x_tau = (fresh + tau * first).detach()
    x_1 = x_tau + (1 - tau) * -velocity_of(TEACHER, x_tau, t, None)
    guidance = (student_forward - (x_1 - fresh)).square().mean()
    pairs = (-network(z, one, None) - (x0 - z)).square().mean()
    torch.testing.assert_close(loss, pairs + 0.3 * guidance)
    expected = torch.autograd.grad(pairs + 0.3 * guidance, network.weights)[0]
    torch.testing.assert_close(found, expected)
    assert diagnostics["pair_error_rms"].item() == pytest.approx(pairs.item() ** 0.5)


def test_without_weight_no_teacher_is_needed() -> None:
    objective = FlowGuidedDistillation(weight=0.0)
    assert objective.needs == {"student", "data"}
    assert objective.student_loss(Turn(student=Straight(), data=gaussian_pairs(8)))[0].item() < 1e-24
    assert FlowGuidedDistillation().needs == {"student", "teacher", "data"}
    assert AnnealingReflow().needs == {"student", "data"}


@pytest.mark.parametrize(
    "objective",
    [AnnealingReflow(updates=10), FlowGuidedDistillation(), FlowGuidedDistillation(first_leg="teacher")],
    ids=["reflow", "distillation", "teacher's leg"],
)
def test_the_layout_makes_no_difference(
    layouts_agree: Callable[..., None], objective: AnnealingReflow | FlowGuidedDistillation
) -> None:
    network = Linear()
    layouts_agree(
        lambda turn: objective.student_loss(turn)[0],
        parameters=[network.weights],
        student=NetworkDenoiser(network),
        teacher=TEACHER,
        update=4,
    )


def test_the_target_has_no_gradient() -> None:
    teacher, student = Linear(), Linear()
    turn = Turn(student=NetworkDenoiser(student), teacher=NetworkDenoiser(teacher), data=gaussian_pairs(8))
    FlowGuidedDistillation().student_loss(turn)[0].backward()
    assert teacher.weights.grad is None
    assert student.weights.grad is not None


def test_pairs_are_the_ends_of_the_teachers_flow() -> None:
    noise = torch.randn(6, 2, dtype=torch.float64)
    pairs = reflow_pairs(TEACHER, noise, None, times=uniform_grid(64))
    torch.testing.assert_close(pairs.x0, MEAN + STD * noise, atol=2e-3, rtol=0)
    assert pairs.noise is noise
    coarse = reflow_pairs(TEACHER, noise, None, times=(1.0, 0.0), sampler=euler)
    torch.testing.assert_close(coarse.x0, TEACHER(noise, torch.ones(6, dtype=torch.float64), None))


@pytest.mark.parametrize("path", [VPPath(), TrigFlowPath(0.5)], ids=lambda path: type(path).__name__)
def test_pairs_of_a_teacher_on_another_path_keep_standard_noise(path: Path) -> None:
    """The second starts from noise of half the size."""
    elsewhere = GaussianDenoiser(mean=MEAN, std=STD, path=path)
    noise = torch.randn(6, 2, dtype=torch.float64)
    pairs = reflow_pairs(elsewhere, noise, None, times=uniform_grid(64))
    torch.testing.assert_close(pairs.x0, MEAN + STD * noise, atol=2e-3, rtol=0)


def test_pairs_of_packed_samples_are_those_of_each_token() -> None:
    noise, layout = torch.randn(5, 2, dtype=torch.float64), Packed(torch.tensor([0, 1, 1, 0, 1]), 2)
    pairs = reflow_pairs(TEACHER, noise, None, times=uniform_grid(8), layout=layout)
    assert pairs.layout is layout
    torch.testing.assert_close(pairs.x0[:1], reflow_pairs(TEACHER, noise[:1], None, times=uniform_grid(8)).x0)


def test_pairs_carry_no_graph() -> None:
    teacher = NetworkDenoiser(Linear())
    noise = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert not reflow_pairs(teacher, noise, None, times=uniform_grid(2)).x0.requires_grad


def test_data_without_noise_are_refused_with_the_remedy() -> None:
    turn = Turn(student=Straight(), teacher=TEACHER, data=Data(x0=torch.randn(4, 1)))
    for objective in (AnnealingReflow(), FlowGuidedDistillation()):
        with pytest.raises(ValueError, match="reflow_pairs"):
            objective.student_loss(turn)


def test_students_and_teachers_off_the_linear_path_are_refused() -> None:
    elsewhere = GaussianDenoiser(path=VPPath())
    for objective in (AnnealingReflow(), FlowGuidedDistillation()):
        with pytest.raises(ValueError, match="linear path"):
            objective.student_loss(Turn(student=elsewhere, teacher=elsewhere, data=gaussian_pairs(4)))
    with pytest.raises(ValueError, match="OnPath"):
        FlowGuidedDistillation().student_loss(
            Turn(student=Straight(), teacher=elsewhere, data=gaussian_pairs(4))
        )


def test_negative_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="updates=-1"):
        AnnealingReflow(updates=-1)
    with pytest.raises(ValueError, match="weight=-1"):
        FlowGuidedDistillation(weight=-1.0)


@pytest.mark.parametrize("objective", [AnnealingReflow(), FlowGuidedDistillation()])
def test_half_precision_samples_are_compared_in_float32(
    objective: AnnealingReflow | FlowGuidedDistillation,
) -> None:
    pairs = gaussian_pairs(4)
    data = Data(x0=pairs.x0.bfloat16(), noise=torch.ones(4, 1).bfloat16())
    loss, _ = objective.student_loss(Turn(student=Straight(), teacher=Straight(), data=data))
    assert loss.dtype == torch.float32


class Velocity(nn.Module):
    """A velocity a(t) x + b(t) with polynomials of t, x in units of the width that straight pairs have."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(4, 2))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        z = (2 * t - 1)[:, None]
        basis = torch.cat([z**0, 3**0.5 * z, 5**0.5 * (3 * z**2 - 1) / 2, 7**0.5 * (5 * z**3 - 3 * z) / 2], 1)
        a, b = (basis @ self.weights).unbind(1)
        return a[:, None] * x_t + b[:, None]


def trained(
    objective: AnnealingReflow | FlowGuidedDistillation, *, steps: int, teacher: nn.Module
) -> NetworkDenoiser:
    """A student that starts at the velocity 0, on pairs that solve the flow of ``TEACHER``."""
    network = Velocity()
    student, generator = NetworkDenoiser(network), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-2, betas=(0.9, 0.99))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 3e-2 * (1 - step / steps)
        z = torch.randn(256, 1, generator=generator)
        turn = Turn(
            student=student,
            teacher=NetworkDenoiser(teacher),
            data=Data(x0=MEAN + STD * z, noise=z),
            update=step,
            generator=generator,
        )
        optimiser.zero_grad()
        objective.student_loss(turn)[0].backward()
        optimiser.step()
    return student


def slope_and_mean(student: NetworkDenoiser) -> tuple[float, float]:
    ends = student(torch.tensor([[0.0], [1.0]]), torch.ones(2), None)[:, 0].tolist()
    return ends[1] - ends[0], ends[0]


def test_a_student_from_nothing_learns_the_pairs_by_annealing_and_then_distillation() -> None:
    reflowed = trained(AnnealingReflow(updates=150), steps=300, teacher=Velocity())
    assert slope_and_mean(reflowed) == pytest.approx((STD, MEAN), rel=0.05)
    distilled = trained(FlowGuidedDistillation(), steps=300, teacher=reflowed.network)
    assert slope_and_mean(distilled) == pytest.approx((STD, MEAN), rel=0.02)


def test_a_student_that_never_stops_annealing_does_not() -> None:
    """The control: with fresh noise alone one step gives the mean."""
    assert (
        abs(slope_and_mean(trained(AnnealingReflow(updates=10**9), steps=300, teacher=Velocity()))[0]) < 0.1
    )
