"""MDT-dist: the exact average velocity, velocity distillation as DMD, and where students end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import Denoiser, NetworkDenoiser, velocity_of
from fewstep.core.layouts import DENSE, Masked, append_dims
from fewstep.core.objectives.contract import Data, Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.mdt import MDT, d_normalised, velocity_before, velocity_matching_target
from fewstep.core.paths import LinearPath, Path, VPPath
from fewstep.core.schedules import TimeSampler, UniformTimes

MEAN, STD = 1.3, 0.7
TEACHER = GaussianDenoiser(mean=MEAN, std=STD)
X, T = 0.37, 0.8  # the golden point

Derivative = Literal["jvp", "difference"]
every_derivative = pytest.mark.parametrize("derivative", ["jvp", "difference"])


@dataclass(frozen=True)
class ExactAverage:
    """The student that velocity matching asks for: its velocity leads to the end of the teacher's flow."""

    gaussian: GaussianDenoiser = TEACHER

    @property
    def path(self) -> Path:
        return self.gaussian.path

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        time = append_dims(t, x_t)
        average = (x_t - self.gaussian.transport(x_t, time, torch.zeros_like(time))) / time
        return self.path.x0_from_velocity(average, x_t, time)


@dataclass(frozen=True, kw_only=True)
class GivenTurn(Turn):
    """A turn whose noises are known, one after another."""

    noises: Sequence[Tensor]
    drawn: list[int] = field(default_factory=list)

    def noise_like(self, x: Tensor) -> Tensor:
        self.drawn.append(1)
        return self.noises[len(self.drawn) - 1]


def turn_at(
    x_t: Tensor, t: float, *, student: Denoiser, teacher: Denoiser = TEACHER, z: Tensor | None = None
) -> GivenTurn:
    """A turn whose data, once noised to t, is ``x_t``; ``z`` is the noise of one-step samples."""
    x0 = torch.full_like(x_t, 0.2)
    time = torch.full_like(x_t, t)
    eps = (x_t - teacher.path.alpha(time) * x0) / teacher.path.sigma(time)
    noises = [eps] if z is None else [eps, z]
    return GivenTurn(student=student, teacher=teacher, data=Data(x0=x0), noises=noises)


def matching(t: float, derivative: Derivative = "jvp", *, low: float = 0.0, **settings: Any) -> MDT:
    """Velocity matching alone, at the one time ``t``."""
    low = low + (0.01 if derivative == "difference" else 0.0)
    settings = {"lambda_vd": 0.0, **settings}
    return MDT(derivative=derivative, times=At((t - low) / (1 - low)), **settings)


@dataclass(frozen=True)
class At(TimeSampler):
    value: float

    def sample(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return torch.full((batch_size,), self.value, dtype=torch.float64)


def residual_at_the_golden_point(objective: MDT, student: Denoiser, teacher: Denoiser = TEACHER) -> float:
    x_t = torch.full((1, 1), X, dtype=torch.float64)
    _, diagnostics = objective.student_loss(turn_at(x_t, T, student=student, teacher=teacher))
    return diagnostics["vm_residual_rms"].item()


def test_the_exact_average_velocity_has_no_residual() -> None:
    """T-MDT-1, exact derivative."""
    assert residual_at_the_golden_point(matching(T, "jvp"), ExactAverage()) < 1e-12


def test_the_difference_leaves_a_residual_of_the_order_of_its_step() -> None:
    """T-MDT-1, the released default."""
    whole = residual_at_the_golden_point(matching(T, "difference"), ExactAverage())
    half = residual_at_the_golden_point(
        MDT(step=0.005, lambda_vd=0.0, times=At((T - 0.005) / (1 - 0.005))), ExactAverage()
    )
    assert whole == pytest.approx(6.9e-4, abs=5e-6)
    assert half == pytest.approx(whole / 2, rel=0.01)


def test_d_norm_moves_the_fixed_point() -> None:
    """T-MDT-1: why it is off by default."""
    assert not MDT().d_norm
    assert residual_at_the_golden_point(matching(T, d_norm=True), ExactAverage()) == pytest.approx(
        0.34253, abs=5e-6
    )


@every_derivative
def test_a_path_that_does_not_end_in_clean_data_has_the_same_identity(derivative: Derivative) -> None:
    gaussian = GaussianDenoiser(mean=MEAN, std=STD, path=LinearPath(sigma_min=0.01))
    objective = matching(T, derivative, low=0.01)
    residual = residual_at_the_golden_point(objective, ExactAverage(gaussian), gaussian)
    assert residual < (1e-12 if derivative == "jvp" else 1e-3)


class Polynomial(nn.Module):
    """A velocity whose derivatives are known: (a + b t + c t^2) x + d t."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.4, -0.7, 0.3, 0.9], dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        a, b, c, d = self.weights
        time = append_dims(t, x_t)
        return (a + b * time + c * time**2) * x_t + d * time


def by_hand(network: Polynomial, x_t: Tensor, t: float, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """The average velocity with its gradient, and the residual, from the paper's formula."""
    a, b, c, d = network.weights.tolist()
    average = network(x_t, torch.full((len(x_t),), t, dtype=torch.float64), None)
    d_dx, d_dt = a + b * t + c * t**2, (b + 2 * c * t) * x_t + d
    return average, average.detach() - (velocity - t * (d_dx * velocity + d_dt))


def test_the_gradient_is_twice_the_residual_through_the_first_term_alone() -> None:
    """Against the formula written out: the derivative is held constant."""
    network, x_t = Polynomial(), torch.randn(5, 3, dtype=torch.float64)
    turn = turn_at(x_t, 0.6, student=NetworkDenoiser(network))
    loss, _ = matching(0.6).student_loss(turn)
    (found,) = torch.autograd.grad(loss, network.weights)
    velocity = velocity_of(TEACHER, x_t, torch.full((5,), 0.6, dtype=torch.float64), None)
    average, residual = by_hand(network, x_t, 0.6, velocity)
    (expected,) = torch.autograd.grad((2 * residual * average).sum() / 15, network.weights)
    assert loss.item() == pytest.approx(residual.square().mean().item())
    torch.testing.assert_close(found, expected)


def test_the_difference_is_the_formula_written_out() -> None:
    network, x_t = Polynomial(), torch.randn(5, 3, dtype=torch.float64)
    t, velocity = torch.full((5,), 0.6, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    found = velocity_before(NetworkDenoiser(network), x_t, t, velocity, None, step=0.2)
    a, b, c, d = network.weights.tolist()
    expected = (a + b * 0.4 + c * 0.16) * (x_t - 0.2 * velocity) + d * 0.4
    torch.testing.assert_close(found, expected)


def test_the_two_derivatives_agree_to_first_order() -> None:
    network, x_t = Polynomial(), torch.randn(5, 3, dtype=torch.float64)
    losses = []
    for objective in (
        matching(0.6),
        MDT(step=1e-5, lambda_vd=0.0, times=At((0.6 - 1e-5) / (1 - 1e-5))),
    ):
        turn = turn_at(x_t, 0.6, student=NetworkDenoiser(network))
        losses.append(objective.student_loss(turn)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != losses[1]


def test_the_target_is_the_velocity_less_t_times_the_derivative() -> None:
    velocity, derivative = torch.randn(2, 4, 3)
    t = torch.tensor([0.1, 0.4, 0.7, 1.0])
    expected = velocity - t[:, None] * derivative
    torch.testing.assert_close(velocity_matching_target(velocity, derivative, t), expected)


def test_velocity_distillation_moves_the_one_step_sample_by_the_residual() -> None:
    """T-MDT-2: dL / du = 2 rho / (B n) in the velocity at t = 1, at the noise and time of the matching."""
    network, z = Polynomial(), torch.randn(5, 3, dtype=torch.float64)
    x_t = torch.randn(5, 3, dtype=torch.float64)
    turn = turn_at(x_t, 0.6, student=NetworkDenoiser(network), z=z)
    loss, diagnostics = matching(0.6, lambda_vm=1e-30, lambda_vd=1.0).student_loss(turn)
    (found,) = torch.autograd.grad(loss, network.weights)

    average = network(z, torch.ones(5, dtype=torch.float64), None)
    x_f_t = 0.4 * (z - average.detach()) + 0.6 * turn.noises[0]
    velocity = velocity_of(TEACHER, x_f_t, torch.full((5,), 0.6, dtype=torch.float64), None)
    _, residual = by_hand(network, x_f_t, 0.6, velocity)
    (expected,) = torch.autograd.grad((2 * residual * average).sum() / 15, network.weights)
    torch.testing.assert_close(found, expected)
    assert diagnostics["vd_residual_rms"].item() == pytest.approx(residual.square().mean().sqrt().item())


def sample_gradient(objective: MDT | DMD, x: Tensor, **roles: Any) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    weight = roles.pop("weight", None)
    turn = Turn(sample=Sample(x=leaf, weight=weight), generator=torch.Generator().manual_seed(7), **roles)
    return torch.autograd.grad(objective.student_loss(turn)[0], leaf)[0]


@dataclass(frozen=True)
class OwnCritic:
    """The denoiser that the student implies: its velocity is u + t du/dt along the teacher's flow."""

    network: Polynomial
    path: Path = field(default_factory=LinearPath)

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        velocity = velocity_of(TEACHER, x_t, t, None)
        average, slope = torch.func.jvp(
            lambda x, time: self.network(x, time, None), (x_t, t), (velocity, torch.ones_like(t))
        )[:2]
        time = append_dims(t, x_t)
        return x_t - time * (average + time * slope)


@pytest.mark.parametrize("t", [0.15, 0.6, 0.95])
def test_velocity_distillation_is_dmd_with_the_student_as_its_own_critic(t: float) -> None:
    """T-MDT-4 and identity 4: dL_VD / dx = (2 / t) (D_f - D_r) / (B n)."""
    network, x = Polynomial(), torch.randn(6, 2, dtype=torch.float64)
    distillation = MDT(lambda_vm=0.0, derivative="jvp", times=At(t))
    found = sample_gradient(distillation, x, student=NetworkDenoiser(network), teacher=TEACHER)
    dmd = sample_gradient(DMD(weighting="none", times=At(t)), x, critic=OwnCritic(network), teacher=TEACHER)
    torch.testing.assert_close(found, 2 / t * dmd)
    assert dmd.abs().max() > 0.01


def test_a_student_at_the_teacher_is_not_moved() -> None:
    x = torch.randn(6, 2, dtype=torch.float64)
    objective = MDT(lambda_vm=0.0, derivative="jvp", times=At(0.6))
    grad = sample_gradient(objective, x, student=ExactAverage(), teacher=TEACHER)
    assert grad.abs().max() < 1e-12


def test_without_matching_the_rollouts_samples_are_distilled() -> None:
    network, z = Polynomial(), torch.randn(5, 3, dtype=torch.float64)
    student, eps = NetworkDenoiser(network), torch.randn(5, 3, dtype=torch.float64)
    data = Data(x0=torch.zeros(5, 3, dtype=torch.float64))
    both = GivenTurn(student=student, teacher=TEACHER, data=data, noises=[eps, z])
    loss, _ = matching(0.6, lambda_vm=1e-30, lambda_vd=0.3).student_loss(both)
    (expected,) = torch.autograd.grad(loss, network.weights)

    sample = Sample(x=student(z, torch.ones(5, dtype=torch.float64), None))
    alone = GivenTurn(student=student, teacher=TEACHER, sample=sample, noises=[eps])
    loss, diagnostics = matching(0.6, lambda_vm=0.0, lambda_vd=0.3).student_loss(alone)
    (found,) = torch.autograd.grad(loss, network.weights)
    torch.testing.assert_close(found, expected)
    assert set(diagnostics) == {"vd_residual_rms"}


def test_the_weights_of_a_sample_multiply_its_gradient() -> None:
    x, student = torch.randn(2, 4, 3, dtype=torch.float64), NetworkDenoiser(Polynomial())
    weight = torch.tensor([[0.0, 0.0, 1.0, 2.0]], dtype=torch.float64).expand(2, 4)
    objective, roles = MDT(lambda_vm=0.0), dict(student=student, teacher=TEACHER)
    weighted = sample_gradient(objective, x, weight=weight, **roles)
    torch.testing.assert_close(weighted, weight[..., None] * sample_gradient(objective, x, **roles))


def test_the_losses_are_weighed_and_summed() -> None:
    network, x_t, z = Polynomial(), *torch.randn(2, 5, 3, dtype=torch.float64)
    values = []
    for lambdas in ((2.0, 0.0), (1e-30, 3.0), (2.0, 3.0)):
        turn = turn_at(x_t, 0.6, student=NetworkDenoiser(network), z=z)
        objective = matching(0.6, lambda_vm=lambdas[0], lambda_vd=lambdas[1])
        values.append(objective.student_loss(turn)[0].item())
    assert values[2] == pytest.approx(values[0] + values[1])


def test_the_difference_is_a_consistency_model_in_another_parametrisation() -> None:
    """Identity 8: step times the residual is that of consistency in x0, plus step times a difference."""
    network, step, t = Polynomial(), 0.01, 0.6
    x_t = torch.randn(1, 1, dtype=torch.float64)
    turn = turn_at(x_t, t, student=NetworkDenoiser(network))
    residual = matching(t, "difference").student_loss(turn)[1]["vm_residual_rms"].item()

    velocity = velocity_of(TEACHER, x_t, torch.tensor([t], dtype=torch.float64), None)
    here = network(x_t, torch.tensor([t], dtype=torch.float64), None)
    before = x_t - step * velocity
    there = network(before, torch.tensor([t - step], dtype=torch.float64), None)
    consistency = (before - (t - step) * there) - (x_t - t * here)
    expected = consistency + step * (here - there)
    assert step * residual == pytest.approx(expected.abs().item(), rel=1e-9)


@every_derivative
@pytest.mark.parametrize("d_norm", [False, True])
@pytest.mark.parametrize("lambdas", [(1.0, 1.0), (0.0, 1.0)])
def test_the_layout_makes_no_difference(
    layouts_agree: Callable[..., None], derivative: Derivative, d_norm: bool, lambdas: tuple[float, float]
) -> None:
    network = Polynomial()
    objective = MDT(derivative=derivative, d_norm=d_norm, lambda_vm=lambdas[0], lambda_vd=lambdas[1])
    layouts_agree(
        lambda turn: objective.student_loss(turn)[0],
        parameters=[network.weights],
        student=NetworkDenoiser(network),
        teacher=TEACHER,
    )


def test_d_norm_divides_by_the_norm_of_the_real_elements_of_a_sample() -> None:
    derivative = torch.tensor([[3.0, 4.0, 99.0], [6.0, 8.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    found = d_normalised(derivative, Masked(mask))
    torch.testing.assert_close(found, derivative / torch.tensor([[5.1], [10.1]], dtype=torch.float64))
    torch.testing.assert_close(d_normalised(derivative[1:], DENSE), found[1:])


class Dropping(nn.Module):
    """A velocity that depends on nothing but dropout: its derivative is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.dropout(self.scale.expand_as(x_t))


@every_derivative
def test_dropout_is_the_same_in_both_calls(derivative: Derivative) -> None:
    x_t = torch.randn(6, 3, dtype=torch.float64)
    turn = turn_at(x_t, 0.6, student=NetworkDenoiser(Dropping()))
    loss, _ = matching(0.6, derivative).student_loss(turn)
    velocity = velocity_of(TEACHER, x_t, torch.full((6,), 0.6, dtype=torch.float64), None)
    # every element of the velocity is 0 or 2
    smallest = torch.minimum(velocity.square(), (2 - velocity).square()).mean()
    largest = torch.maximum(velocity.square(), (2 - velocity).square()).mean()
    assert smallest.item() <= loss.item() <= largest.item()


@every_derivative
def test_autocast_keeps_the_gradient(derivative: Derivative) -> None:
    network = nn.Linear(3, 3)
    student = NetworkDenoiser(WithoutTime(network))
    data = Data(x0=torch.randn(16, 3))
    gradients = []
    for enabled in (True, False):
        turn = Turn(student=student, teacher=TEACHER, data=data, generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, _ = MDT(derivative=derivative, step=0.2).student_loss(turn)
        gradients.append(torch.autograd.grad(loss, network.weight)[0])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(*gradients, rtol=0.2, atol=0.05)  # of bfloat16 differences over 0.2


class WithoutTime(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.network(x_t)


def test_half_precision_samples_are_compared_in_float32() -> None:
    student = NetworkDenoiser(WithoutTime(nn.Linear(3, 3).bfloat16()))
    data = Data(x0=torch.randn(4, 3).bfloat16())
    loss, _ = MDT().student_loss(Turn(student=student, teacher=TEACHER, data=data))
    assert loss.dtype == torch.float32


def test_times_keep_the_earlier_point_inside_the_path(known_turn: Callable[..., Turn]) -> None:
    seen: list[Tensor] = []

    def spy(x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        seen.append(t)
        return torch.zeros_like(x_t)

    x0 = torch.zeros(32, 1)
    objective = MDT(times=UniformTimes(low=1e-6), lambda_vd=0.0)
    objective.student_loss(
        known_turn(x0, data=Data(x0=x0), student=NetworkDenoiser(Function(spy)), teacher=TEACHER)
    )
    before, here = seen
    torch.testing.assert_close(here - before, torch.full_like(here, 0.01))
    assert 0 < before.min() < 0.2
    assert here.max() <= 1


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor, object], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.function(x_t, t, condition)


def test_it_needs_data_only_for_matching() -> None:
    assert MDT().needs == {"student", "teacher", "data"}
    assert MDT(lambda_vm=0.0).needs == {"student", "teacher", "sample"}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"lambda_vm": 0.0, "lambda_vd": 0.0}, "lambda_vd=0"),
        ({"lambda_vm": -1.0}, "lambda_vm=-1"),
        ({"step": 0.0}, "step=0"),
        ({"step": 1.0}, "step=1"),
    ],
)
def test_settings_that_train_nothing_are_refused(settings: dict[str, float], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        MDT(**settings)  # pyright: ignore[reportArgumentType]


def test_networks_of_different_paths_are_refused_with_the_remedy() -> None:
    data, elsewhere = Data(x0=torch.randn(2, 3)), GaussianDenoiser(path=VPPath())
    with pytest.raises(ValueError, match="OnPath"):
        MDT().student_loss(Turn(student=TEACHER, teacher=elsewhere, data=data))
    with pytest.raises(ValueError, match="linear path"):
        MDT().student_loss(Turn(student=elsewhere, teacher=elsewhere, data=data))


class Affine(nn.Module):
    """A velocity a(t) x + b(t): Legendre polynomials of t, and x in units of the width of the data's x_t."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(5))
        self.b = nn.Parameter(torch.zeros(5))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        time = append_dims(t, x_t)
        z = 2 * time - 1
        waves = [torch.ones_like(z), z]
        for n in range(1, 4):
            waves.append(((2 * n + 1) * z * waves[n] - n * waves[n - 1]) / (n + 1))
        basis = torch.cat([(2 * n + 1) ** 0.5 * wave for n, wave in enumerate(waves)], dim=1)
        scaled = (x_t - (1 - time) * MEAN) / TEACHER.variance(time).sqrt()
        return (basis @ self.a)[:, None] * scaled + (basis @ self.b)[:, None]


def recovered(objective: MDT, *, steps: int = 150, lr: float = 0.1) -> tuple[float, float]:
    """Mean and width of the one-step samples of a student that starts at the velocity 0."""
    network = Affine()
    student, generator = NetworkDenoiser(network), torch.Generator().manual_seed(0)
    for step in range(steps):
        x0 = MEAN + STD * torch.randn(256, 1, generator=generator)
        turn = Turn(student=student, teacher=TEACHER, data=Data(x0=x0), generator=generator)
        loss, _ = objective.student_loss(turn)
        loss.backward()
        with torch.no_grad():
            for weights in (network.a, network.b):
                assert weights.grad is not None
                weights -= lr * (1 - step / steps) * weights.grad
                weights.grad = None
    samples = student(torch.randn(20_000, 1, generator=generator), torch.ones(20_000), None)
    return samples.mean().item(), samples.std().item()


EVERYWHERE = UniformTimes(low=1e-3)


@every_derivative
def test_velocity_matching_recovers_the_teacher_in_one_step(derivative: Derivative) -> None:
    """T-MDT-3: the width to 2 percent."""
    objective = MDT(derivative=derivative, lambda_vd=0.0, times=EVERYWHERE)
    assert recovered(objective) == pytest.approx((MEAN, STD), rel=0.02)


def test_matching_with_distillation_recovers_it_too() -> None:
    found = recovered(
        MDT(times=EVERYWHERE), steps=500, lr=0.02
    )  # more overshoots: twice the gradient at t = 1
    assert found == pytest.approx((MEAN, STD), rel=0.02)


def test_d_norm_ends_elsewhere() -> None:
    """The control: a student that d_norm takes away from the average velocity."""
    objective = MDT(d_norm=True, lambda_vd=0.0, times=EVERYWHERE)
    assert abs(recovered(objective)[1] - STD) > 0.1 * STD
