"""TwinFlow: rectification as DMD, the twin's own flow, the four parts, and where students end."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import NetworkFlowMap, velocity_of
from fewstep.core.layouts import append_dims
from fewstep.core.objectives.contract import Data, Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.rcgm import RCGM
from fewstep.core.objectives.twin_flow import TwinFlow, twin_gap
from fewstep.core.paths import LinearPath, Path
from fewstep.core.schedules import TimeSampler, UniformTimes

MEAN, STD = 1.3, 0.7
REAL = GaussianDenoiser(mean=MEAN, std=STD)
FAKE = GaussianDenoiser(mean=0.4, std=1.1)
SQUARED = RCGM(loss="squared", enhancement=0.0)


@dataclass
class Twins:
    """The exact velocities of two Gaussians, the second at negative times; its jumps add a leaf.

    Calls are recorded as (x_t, t, r).
    """

    leaf: Tensor
    real: GaussianDenoiser = REAL
    fake: GaussianDenoiser = FAKE
    path: Path = field(default_factory=LinearPath)
    calls: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
        self.calls.append((x_t, t, r))
        size = t.abs().clamp(min=1e-6)
        velocity = torch.where(
            append_dims(t < 0, x_t),
            velocity_of(self.fake, x_t, size, None),
            velocity_of(self.real, x_t, size, None),
        )
        # the leaf must not tell the branches apart
        return velocity if torch.equal(t, r) else velocity + self.leaf

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return x_t - append_dims(t, x_t) * self.average_velocity(x_t, t, torch.zeros_like(t), condition)


@dataclass(frozen=True, kw_only=True)
class Recording(Turn):
    """A turn that keeps what it drew."""

    noises: list[Tensor] = field(default_factory=list)

    def noise_like(self, x: Tensor) -> Tensor:
        self.noises.append(super().noise_like(x))
        return self.noises[-1]


@dataclass(frozen=True, kw_only=True)
class GivenNoise(Turn):
    eps: Tensor

    def noise_like(self, x: Tensor) -> Tensor:
        return self.eps


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


def rectification(
    twins: Twins, x0: Tensor, s: float, **settings: Any
) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]], list[Tensor]]:
    """The gradient of the rectification alone in the leaf, its calls of the student, the noises drawn."""
    gradients: list[Tensor] = []
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    noises: list[Tensor] = []
    for weight in (0.0, 1.0):
        settings = {"any_step": SQUARED, **settings, "weight": weight}
        twins.calls.clear()
        turn = Recording(
            student=twins,
            target=Twins(torch.zeros_like(x0)),
            data=Data(x0=x0),
            generator=torch.Generator().manual_seed(5),
        )
        loss, _ = TwinFlow(times=At(s), **settings).student_loss(turn)
        gradients.append(torch.autograd.grad(loss, twins.leaf, retain_graph=True)[0])
        calls, noises = list(twins.calls), turn.noises
    return gradients[1] - gradients[0], calls, noises


@pytest.mark.parametrize("s", [0.2, 0.7, 0.95])
def test_rectification_is_dmd_with_weight_1_over_t(s: float) -> None:
    """Identity 3 and T-TW-3: plain squares, no clamp; s / 2 times the gradient is that of bare DMD."""
    x0 = torch.randn(8, 3, dtype=torch.float64)
    twins = Twins(0.1 * torch.randn(8, 3, dtype=torch.float64).requires_grad_())
    twins.leaf = twins.leaf.detach().requires_grad_()
    found, calls, noises = rectification(twins, x0, s, clamp=None)

    z, x_s, eps = calls[1][0], calls[-1][0], noises[-1]
    x0_hat = (x_s - s * eps) / (1 - s)
    jump = velocity_of(REAL, z, torch.ones(8, dtype=torch.float64), None) + twins.leaf.detach()
    torch.testing.assert_close(x0_hat[:2], z[:2] - jump[:2])
    torch.testing.assert_close(z[:2], noises[1][:2])

    leaf = x0_hat[:2].clone().requires_grad_()
    turn = GivenNoise(sample=Sample(x=leaf), teacher=REAL, critic=FAKE, eps=eps[:2])
    dmd, _ = DMD(weighting="none", times=At(s)).student_loss(turn)
    (expected,) = torch.autograd.grad(dmd, leaf)
    # x0_hat = z - u, so that gradients in u and x0_hat have opposite signs
    torch.testing.assert_close(-s / 2 * found[:2], expected)
    assert (found[2:] == 0).all()
    assert expected.abs().max() > 0.01


def test_rectification_moves_samples_towards_the_data() -> None:
    """T-TW-3: the student's samples have a lower mean, which descent must raise, by lowering u."""
    twins = Twins(torch.zeros(400, 1, dtype=torch.float64).requires_grad_())
    gradient, _, _ = rectification(twins, torch.zeros(400, 1, dtype=torch.float64), 0.6)
    assert gradient[:100].mean() > 0


def test_rectification_of_equal_twins_is_nothing() -> None:
    """T-TW-3."""
    twins = Twins(torch.randn(8, 3, dtype=torch.float64).requires_grad_(), fake=REAL)
    gradient, _, _ = rectification(twins, torch.randn(8, 3, dtype=torch.float64), 0.6)
    assert gradient.abs().max() < 1e-12


def test_the_gap_is_that_of_the_denoised_samples_over_t() -> None:
    x_t, t = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    gap = twin_gap(Twins(torch.zeros(4, 2)), x_t, t, None)
    expected = -(FAKE(x_t, t, None) - REAL(x_t, t, None)) / t[:, None]
    torch.testing.assert_close(gap, expected)


@pytest.mark.parametrize("clamp", [0.05, None])
def test_the_clamp_bounds_the_gap_of_each_element(clamp: float | None) -> None:
    twins = Twins(torch.zeros(8, 3, dtype=torch.float64).requires_grad_())
    gradient, calls, _ = rectification(twins, torch.randn(8, 3, dtype=torch.float64), 0.5, clamp=clamp)
    gap = twin_gap(twins, calls[-1][0], torch.full((8,), 0.5, dtype=torch.float64), None)[:2]
    bounded = gap if clamp is None else gap.clamp(-clamp, clamp)
    torch.testing.assert_close(gradient[:2], 2 * bounded / (2 * 3))
    assert gap.abs().max() > 0.05


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
    objective = TwinFlow(any_step=RCGM(loss="squared", times=At(0.6)), weight=0.0)
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


def test_only_the_twin_is_called_at_negative_times() -> None:
    twins = Twins(torch.zeros(8, 2).requires_grad_())
    rectification(twins, torch.randn(8, 2), 0.5)
    signs = [(t.sign().tolist(), torch.equal(t, r)) for _, t, r in twins.calls]
    once, main, fake, real = signs
    assert once[0] == [1] * 8
    assert main[0] == [1] * 6 + [-1] * 2
    assert torch.equal(*(time[6:] for time in twins.calls[1][1:]))
    assert fake == ([-1] * 8, True)
    assert real == ([1] * 8, True)


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


@dataclass(frozen=True, kw_only=True)
class Drawing(Turn):
    """A turn whose uniform numbers are all one number."""

    number: float

    def uniform(self, size: int, device: torch.device) -> Tensor:
        return torch.full((size,), self.number, dtype=torch.float64)


@pytest.mark.parametrize(("number", "factor"), [(0.1, 4.0), (0.3, 0.0)])
def test_a_random_split_weighs_the_rectification_by_the_batch(number: float, factor: float) -> None:
    """A sample alone is a whole interval once in four times, and then weighs four times as much."""
    twins, losses = Twins(torch.zeros(1, 3, dtype=torch.float64)), []
    for weight in (0.0, 1.0):
        turn = Drawing(
            student=twins,
            target=Twins(torch.zeros(1, 3)),
            data=Data(x0=torch.zeros(1, 3, dtype=torch.float64)),
            generator=torch.Generator().manual_seed(0),
            number=number,
        )
        any_step = RCGM(loss="squared", split="random")
        objective = TwinFlow(any_step=any_step, times=At(0.5), clamp=None, weight=weight)
        losses.append(objective.student_loss(turn)[0].item())
    gap = twin_gap(twins, twins.calls[-1][0], torch.tensor([0.5], dtype=torch.float64), None)
    assert losses[1] - losses[0] == pytest.approx(factor * gap.square().mean().item())


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


def legendre(t: Tensor, degree: int) -> Tensor:
    """Orthonormal polynomials on [0, 1]."""
    z = 2 * t - 1
    waves = [torch.ones_like(z), z]
    for n in range(1, degree):
        waves.append(((2 * n + 1) * z * waves[n] - n * waves[n - 1]) / (n + 1))
    return torch.stack([(2 * n + 1) ** 0.5 * wave for n, wave in enumerate(waves)], dim=-1)


class AffineTwins(nn.Module):
    """An average velocity a(t, r) x + b(t, r) for each sign, with x in units of its width."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2, 16, 2))

    def forward(self, x_t: Tensor, t: Tensor, condition: object, r: Tensor) -> Tensor:
        start, end = t.abs(), r.abs()
        basis = (legendre(start, 3)[:, :, None] * legendre(start - end, 3)[:, None]).flatten(1)
        a, b = torch.einsum("nk, nkc -> nc", basis, self.weights[(t < 0).long()]).unbind(1)
        scaled = (x_t - (1 - start[:, None]) * MEAN) / REAL.variance(start[:, None]).sqrt()
        return a[:, None] * scaled + b[:, None]


@dataclass(frozen=True)
class Trained:
    student: NetworkFlowMap

    def samples(self) -> Tensor:
        z = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1))
        return self.student(z, torch.ones(20_000), None).detach()

    def gap(self) -> float:
        """The largest difference of the two branches at three points."""
        x_t, t = torch.tensor([[0.3], [1.0], [-0.5]]), torch.tensor([0.2, 0.5, 0.9])
        return twin_gap(self.student, x_t, t, None).abs().max().item()


def trained(objective: TwinFlow, *, steps: int, only_twin: bool = False) -> Trained:
    """A student that starts at the velocity 0, or with ``only_twin`` one whose jumps stay there."""
    network, average = AffineTwins(), AffineTwins()
    student, target = NetworkFlowMap(network), NetworkFlowMap(average)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-2, betas=(0.9, 0.99))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-2 * (1 - step / steps)
        x0 = MEAN + STD * torch.randn(384, 1, generator=generator)
        turn = Turn(student=student, target=target, teacher=REAL, data=Data(x0=x0), generator=generator)
        optimiser.zero_grad()
        objective.student_loss(turn)[0].backward()
        if only_twin:
            assert network.weights.grad is not None
            network.weights.grad[0] = 0
        optimiser.step()
        with torch.no_grad():
            average.weights.lerp_(network.weights, 0.1)
    return Trained(student)


def test_an_affine_student_recovers_the_data_in_one_step() -> None:
    student = trained(TwinFlow(), steps=400)
    samples = student.samples()
    assert (samples.mean().item(), samples.std().item()) == pytest.approx((MEAN, STD), rel=0.07)
    assert student.gap() < 0.15


@pytest.mark.slow
def test_an_affine_student_recovers_the_data_closely_with_time() -> None:
    samples = trained(TwinFlow(), steps=1200).samples()
    assert (samples.mean().item(), samples.std().item()) == pytest.approx((MEAN, STD), rel=0.02)


def test_the_twins_differ_where_the_samples_are_not_the_data() -> None:
    """T-TW-4: a student whose samples stay noise, and a twin that has learnt so."""
    untaught = trained(TwinFlow(weight=0.0), steps=150, only_twin=True)
    assert untaught.samples().std().item() == pytest.approx(1, rel=0.02)
    assert untaught.gap() > 0.3
