"""MDT-dist: velocity matching, with a residual of zero at the exact average velocity."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import Denoiser, NetworkDenoiser, velocity_of
from fewstep.core.layouts import DENSE, Masked
from fewstep.core.objectives.contract import Data, Turn
from fewstep.core.objectives.mdt import MDT, d_normalised, velocity_before, velocity_matching_target
from fewstep.core.paths import LinearPath, VPPath
from fewstep.core.schedules import UniformTimes
from tests.core.objectives.known_numbers import FixedTimes
from tests.core.objectives.mdt_turns import (
    MEAN,
    STD,
    TEACHER,
    Derivative,
    ExactAverage,
    Polynomial,
    by_hand,
    every_derivative,
    matching,
    turn_at,
)

X, T = 0.37, 0.8  # the golden point


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
        MDT(step=0.005, lambda_vd=0.0, times=FixedTimes(((T - 0.005) / (1 - 0.005),))), ExactAverage()
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
        MDT(step=1e-5, lambda_vd=0.0, times=FixedTimes(((0.6 - 1e-5) / (1 - 1e-5),))),
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


def test_the_losses_are_weighed_and_summed() -> None:
    network, x_t, z = Polynomial(), *torch.randn(2, 5, 3, dtype=torch.float64)
    values = []
    for lambdas in ((1.0, 0.0), (1e-30, 1.0), (2.0, 3.0)):
        turn = turn_at(x_t, 0.6, student=NetworkDenoiser(network), z=z)
        objective = matching(0.6, lambda_vm=lambdas[0], lambda_vd=lambdas[1])
        values.append(objective.student_loss(turn)[0].item())
    assert values[2] == pytest.approx(2 * values[0] + 3 * values[1])


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
        assert loss.dtype == torch.float32
        gradients.append(torch.autograd.grad(loss, network.weight)[0])
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


@every_derivative
def test_times_begin_where_the_path_has_noise_and_a_step_has_room(
    derivative: Derivative, known_turn: Callable[..., Turn]
) -> None:
    """r in (0, 1] is mapped to (sigma_min + step, 1], and to (sigma_min, 1] where there is no step."""
    path, seen = LinearPath(sigma_min=0.2), []

    def spy(x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        seen.append(t)
        return torch.zeros_like(x_t)

    x0 = torch.zeros(2, 1, dtype=torch.float64)
    roles = {"student": NetworkDenoiser(Function(spy), path), "teacher": GaussianDenoiser(path=path)}
    objective = MDT(times=FixedTimes((1e-9, 1.0)), lambda_vd=0.0, derivative=derivative, step=0.1)
    objective.student_loss(known_turn(x0, data=Data(x0=x0), **roles))
    low = 0.2 if derivative == "jvp" else 0.3
    assert seen[-1].tolist() == pytest.approx([low, 1.0])


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
