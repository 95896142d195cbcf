"""TwinFlow: the four parts of a batch, and the twin's own flow."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import NetworkFlowMap, velocity_of
from fewstep.core.layouts import append_dims
from fewstep.core.objectives.contract import Data, Turn
from fewstep.core.objectives.rcgm import RCGM
from fewstep.core.objectives.twin_flow import TwinFlow
from fewstep.core.schedules import UniformTimes
from tests.core.objectives.known_numbers import FixedTimes

FAKE = GaussianDenoiser(mean=0.4, std=1.1)
SQUARED = RCGM(loss="squared", enhancement=0.0)


class AffineTwin(nn.Module):
    """Jumps to N(0.4, 1.1^2); at negative times the learnt a x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, condition: object, r: Tensor) -> Tensor:
        twin = self.weights[0] * x_t + self.weights[1]
        return torch.where(append_dims(t < 0, x_t), twin, x_t - (FAKE.mean + FAKE.std * x_t))


def test_the_twin_fits_the_velocity_of_the_students_samples() -> None:
    """T-TW-2: the loss is quadratic in the twin's weights; its minimum is the exact velocity at t = 0.6."""
    network, x0 = AffineTwin(), torch.full((80_000, 1), 7.0, dtype=torch.float64)
    objective = TwinFlow(any_step=RCGM(loss="squared", times=FixedTimes((0.6,))), weight=0.0)
    gradients = []
    for a, b in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        network.weights.data = torch.tensor([a, b], dtype=torch.float64)
        student = NetworkFlowMap(network)
        turn = Turn(
            student=student,
            target=student,
            data=Data(x0=x0),
            generator=torch.Generator().manual_seed(0),
        )
        loss, _ = objective.student_loss(turn)
        gradients.append(torch.autograd.grad(loss, network.weights)[0])
    hessian = torch.stack([gradients[1] - gradients[0], gradients[2] - gradients[0]], dim=1)
    found = torch.linalg.solve(hessian, -gradients[0])
    points, t = torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.full((2,), 0.6, dtype=torch.float64)
    at_0, at_1 = velocity_of(FAKE, points, t, None)[:, 0].tolist()
    # five standard errors of 20,000 samples
    assert found.tolist() == pytest.approx([at_1 - at_0, at_0], abs=0.04)


class Curved(nn.Module):
    """A velocity of two signed times, elementwise."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.Parameter(torch.randn(5, generator=generator, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, condition: object, r: Tensor) -> Tensor:
        a, b, c, d, e = self.weights
        start, end = append_dims(t, x_t), append_dims(r, x_t)
        return torch.sin(a * x_t + b * start) + c * end * x_t + d * start * end + e * start.sign()


def turn_of(known_turn: Callable[..., Any], x0: Tensor, student: nn.Module) -> Any:
    return known_turn(x0, student=NetworkFlowMap(student), target=NetworkFlowMap(Curved(1)), data=Data(x0=x0))


def test_three_quarters_are_rcgm_and_one_is_the_twin(known_turn: Callable[..., Any]) -> None:
    """Sample by sample, from the formulas; the rectification apart."""
    student, x0 = Curved(), torch.randn(8, 2, dtype=torch.float64)
    loss, diagnostics = TwinFlow(any_step=SQUARED, weight=0.0).student_loss(turn_of(known_turn, x0, student))
    (found,) = torch.autograd.grad(loss, student.weights)

    turn = turn_of(known_turn, x0, student)
    t = turn.times(UniformTimes(low=1e-3), x0, Data(x0=x0).layout)
    u, z, eps = turn.uniform(8, x0.device), turn.noise_like(x0), turn.noise_like(x0)
    one, zero = torch.ones(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    fakes = (z - student(z, one, None, zero)).detach()
    total, errors = torch.zeros((), dtype=torch.float64), []
    for i in range(8):
        part, here = i // 2, slice(i, i + 1)
        start, end = [(one[here], zero[here]), (t[here], t[here] * (1 - 0.05 * u[here])),
                      (t[here], t[here] * (1 - u[here])), (t[here], t[here])][part]  # fmt: skip
        clean = fakes[here] if part == 3 else x0[here]
        x_t = (1 - start) * clean + start * eps[here]
        velocity = eps[here] - clean
        if part == 3:
            error = (student(x_t, -start, None, -end) - velocity).square().mean()
            total = total + error / 8
        else:
            average = student(x_t, start, None, end)
            target = SQUARED.target(
                turn_of(known_turn, x0[here], student), average, x_t, eps[here], start, end
            )
            error = (average - target).square().mean()
            total = total + error * (torch.tan((1 - (start - end)) * torch.pi / 2.5) + 1).squeeze() / 8
        errors.append(error.item())
    (expected,) = torch.autograd.grad(total, student.weights)
    assert loss.item() == pytest.approx(total.item(), rel=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert diagnostics["fake_error_rms"].item() == pytest.approx((sum(errors[6:]) / 2) ** 0.5, rel=1e-9)
    assert diagnostics["residual_rms"].item() == pytest.approx((sum(errors[:6]) / 6) ** 0.5, rel=1e-9)


def test_the_weight_multiplies_the_rectification_alone() -> None:
    values = []
    for weight in (0.0, 0.5, 1.0):
        student, x0 = NetworkFlowMap(Curved()), torch.ones(8, 2, dtype=torch.float64)
        turn = Turn(
            student=student,
            target=student,
            data=Data(x0=x0),
            generator=torch.Generator().manual_seed(0),
        )
        values.append(TwinFlow(weight=weight).student_loss(turn)[0].item())
    assert values[1] - values[0] == pytest.approx((values[2] - values[0]) / 2)
    assert values[1] > values[0]


@pytest.mark.parametrize("loss", ["barron", "squared"])
def test_the_layout_makes_no_difference(
    layouts_agree: Callable[..., None], loss: Literal["barron", "squared"]
) -> None:
    student = Curved()
    objective = TwinFlow(any_step=RCGM(loss=loss, split="random"))
    layouts_agree(
        lambda turn: objective.student_loss(turn)[0],
        parameters=[student.weights],
        student=NetworkFlowMap(student),
        target=NetworkFlowMap(Curved(1)),
    )


def test_batches_of_fewer_than_four_are_refused_with_the_remedy() -> None:
    student = NetworkFlowMap(Curved())
    turn = Turn(student=student, target=student, data=Data(x0=torch.randn(3, 2, dtype=torch.float64)))
    with pytest.raises(ValueError, match="split='random'"):
        TwinFlow().student_loss(turn)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x_t: Tensor, t: Tensor, condition: object, r: Tensor) -> Tensor:
        return self.layer(x_t) * t.sign()[:, None]


def test_autocast_keeps_the_gradient() -> None:
    network, x0 = Layer(), torch.randn(16, 3)
    student, gradients = NetworkFlowMap(network), []
    for enabled in (True, False):
        turn = Turn(
            student=student,
            target=student,
            data=Data(x0=x0),
            generator=torch.Generator().manual_seed(1),
        )
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, _ = TwinFlow(any_step=RCGM(step=0.2)).student_loss(turn)
        assert loss.dtype == torch.float32
        gradients.append(torch.autograd.grad(loss, network.layer.weight)[0])
    torch.testing.assert_close(*gradients, rtol=0.1, atol=0.1)


def test_half_precision_samples_are_compared_in_float32() -> None:
    student = NetworkFlowMap(Layer().bfloat16())
    turn = Turn(student=student, target=student, data=Data(x0=torch.randn(4, 3).bfloat16()))
    assert TwinFlow().student_loss(turn)[0].dtype == torch.float32


@pytest.mark.parametrize("settings", [{"weight": -1.0}, {"clamp": 0.0}])
def test_settings_without_a_meaning_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}="):
        TwinFlow(**settings)  # pyright: ignore[reportArgumentType]


def test_it_needs_what_its_any_step_part_needs() -> None:
    assert TwinFlow().needs == {"student", "two_times", "target", "data"}
    assert TwinFlow(any_step=RCGM(source="teacher")).needs == TwinFlow().needs | {"teacher"}
