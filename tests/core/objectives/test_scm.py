"""sCM: its tangent at the exact map and against the paper's formula, on any path, warm-up, layouts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import NetworkDenoiser, OnPath
from fewstep.core.layouts import append_dims
from fewstep.core.objectives.contract import Data, Turn
from fewstep.core.objectives.scm import SCM, Angle, network_output, normalised, tangent
from fewstep.core.objectives.trajectories import Derivative, Source, total_derivative
from fewstep.core.paths import QUARTER_TURN, LinearPath, Path, TrigFlowPath, VPPath
from fewstep.core.schedules import UniformTimes

MakeTurn = Callable[..., Turn]

SIGMA_DATA = 0.5
PATHS = [LinearPath(), VPPath(), TrigFlowPath(SIGMA_DATA)]
TIMES = UniformTimes(low=0.1, high=0.9)
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)


@dataclass(frozen=True)
class ExactMap:
    """The consistency function of the Gaussian on any path."""

    denoiser: GaussianDenoiser

    @property
    def path(self) -> Path:
        return self.denoiser.path

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        time = append_dims(t, x_t)
        return self.denoiser.transport(x_t, time, torch.zeros_like(time))


class Network(nn.Module):
    """TrigFlow's F, of a point in units of sigma_data and an angle: scale x (1 + x / 5) + angle^2."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x: Tensor, angle: Tensor) -> Tensor:
        return self.scale * x * (1 + x / 5) + append_dims(angle, x).square()


class TrigDenoiser(nn.Module):
    """f = cos x - sin sigma_data F(x / sigma_data, angle)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.path = network, TrigFlowPath(SIGMA_DATA)

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        angle = t * QUARTER_TURN
        time = append_dims(angle, x_t)
        return time.cos() * x_t - time.sin() * SIGMA_DATA * self.network(x_t / SIGMA_DATA, angle)


class LearntDenoiser(nn.Module):
    """x0 = scale (x + x^2 / 10) + t^2."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.scale * (x_t + x_t.square() / 10) + append_dims(t, x_t).square()


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@every_path
def test_the_angle_is_that_of_trigflow(path: Path) -> None:
    t = times(0.1, 0.4, 0.7, 0.95).requires_grad_()
    angle = Angle(path, t, SIGMA_DATA)
    tau = torch.atan2(angle.sin, angle.cos)
    torch.testing.assert_close(tau.tan(), path.eta(t) / SIGMA_DATA)
    torch.testing.assert_close(angle.dot, torch.autograd.grad(tau.sum(), t)[0])
    torch.testing.assert_close(angle.cos.square() + angle.sin.square(), torch.ones_like(t))
    torch.testing.assert_close(angle.scale * path.alpha(t), angle.cos)
    torch.testing.assert_close(angle.scale * path.sigma(t), angle.sin * SIGMA_DATA)


def test_the_networks_output_stands_for_x0() -> None:
    x_t, t = torch.randn(3, 2, dtype=torch.float64), times(0.2, 0.5, 0.8)
    denoiser = TrigDenoiser(Network())
    angle = Angle(denoiser.path, t[:, None], SIGMA_DATA)
    output = network_output(denoiser(x_t, t, None), x_t, angle)
    torch.testing.assert_close(output, denoiser.network(x_t / SIGMA_DATA, t * QUARTER_TURN))


@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
def test_the_tangent_is_the_papers_written_in_f(warmup: float) -> None:
    """-cos^2 (sigma F - dx/dtau) - rho cos sin (x + sigma dF/dtau), at dx/dtau = cos z - sin x0."""
    x0, z = torch.randn(2, 4, 2, dtype=torch.float64)
    t = times(0.1, 0.4, 0.6, 0.9)
    tau = (t * QUARTER_TURN)[:, None]
    x = tau.cos() * x0 + tau.sin() * z
    denoiser = TrigDenoiser(Network())
    along = tau.cos() * z - tau.sin() * x0
    output, change = torch.func.jvp(
        lambda x, tau: denoiser.network(x / SIGMA_DATA, tau[:, 0]), (x, tau), (along, torch.ones_like(tau))
    )[:2]
    expected = -(tau.cos() ** 2) * (SIGMA_DATA * output - along)
    expected = expected - warmup * tau.cos() * tau.sin() * (x + SIGMA_DATA * change)

    derivative = total_derivative(
        lambda x, t: denoiser(x, t, None), x, t, QUARTER_TURN * along, derivative="jvp"
    )
    angle = Angle(denoiser.path, t[:, None], SIGMA_DATA)
    got = tangent(denoiser(x, t, None), x0, derivative, angle, warmup=warmup)
    torch.testing.assert_close(got, expected)


@every_path
def test_the_tangent_vanishes_at_the_exact_map_and_not_at_the_posterior_mean(
    known_turn: MakeTurn, path: Path
) -> None:
    """T-CM-1."""
    teacher = GaussianDenoiser(mean=1.3, std=0.7, path=path)
    x0 = 1.3 + 0.7 * torch.randn(32, 4, dtype=torch.float64)
    size = {}
    for name, student in (("exact", ExactMap(teacher)), ("mean", teacher)):
        turn = known_turn(x0, student=student, teacher=teacher, data=Data(x0=x0))
        loss, diagnostics = SCM(times=TIMES, warmup=0).student_loss(turn)
        size[name] = diagnostics["tangent_rms"].item()
        assert (loss > 0.1) == (name == "mean")
    assert size["exact"] < 1e-9
    assert size["mean"] > 0.2


def test_every_path_gives_the_same_loss_and_gradient(known_turn: MakeTurn) -> None:
    """The same network on its own path, and behind OnPath on the others."""
    x0, network = torch.randn(16, 3, dtype=torch.float64), TrigDenoiser(Network())
    objective = SCM(times=TIMES, warmup=0)
    results = []
    for path in PATHS:
        student = network if path == network.path else OnPath(network, path)
        teacher = GaussianDenoiser(mean=1.3, std=0.7, path=path)
        turn = known_turn(x0, student=student, teacher=teacher, data=Data(x0=x0))
        loss, diagnostics = objective.student_loss(turn)
        (grad,) = torch.autograd.grad(loss, [network.network.scale])
        results.append((loss.detach(), grad, diagnostics["tangent_rms"]))
    torch.testing.assert_close(results[0], results[2], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(results[1], results[2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("source", ["teacher", "data"])
def test_loss_and_gradient_are_those_of_the_formula_written_out(known_turn: MakeTurn, source: Source) -> None:
    """Algorithm 1 in the network's terms; with 3 of 10 warm-up updates done."""
    x0, network = torch.randn(8, 3, dtype=torch.float64), Network()
    student = TrigDenoiser(network)
    teacher = GaussianDenoiser(mean=1.3, std=0.7, path=student.path)
    objective = SCM(source=source, times=TIMES, sigma_data=SIGMA_DATA, warmup=10, offset=0.2)
    turn = known_turn(x0, student=student, teacher=teacher, data=Data(x0=x0), update=3)
    loss, diagnostics = objective.student_loss(turn)
    (got,) = torch.autograd.grad(loss, [network.scale])

    replay = known_turn(x0)
    drawn = replay.times(TIMES, x0, Data(x0=x0).layout)
    tau = torch.atan(drawn / (1 - drawn) / SIGMA_DATA)[:, None]
    z = SIGMA_DATA * replay.noise_like(x0)
    x = tau.cos() * x0 + tau.sin() * z
    clean = x0 if source == "data" else teacher(x, tau[:, 0] / QUARTER_TURN, None)
    along = (tau.cos() * x - clean) / tau.sin()
    output, change = torch.func.jvp(
        lambda x, tau: network(x / SIGMA_DATA, tau[:, 0]), (x, tau), (along, torch.ones_like(tau))
    )[:2]
    g = -(tau.cos() ** 2) * (SIGMA_DATA * output - along)
    g = (g - 0.3 * tau.cos() * tau.sin() * (x + SIGMA_DATA * change)).detach()
    norm = g.square().mean(1, keepdim=True).sqrt()
    expected = (output - output.detach() - g / (norm + 0.2)).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(got, torch.autograd.grad(expected, [network.scale])[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(diagnostics["tangent_rms"], g.square().mean().sqrt())


def test_the_default_times_are_the_papers_log_normal_noise(known_turn: MakeTurn) -> None:
    x0 = torch.zeros(1, 1)
    t = Turn(generator=torch.Generator().manual_seed(0)).times(
        SCM().times, x0.expand(40_000, 1), Data(x0=x0).layout
    )
    log_eta = LinearPath().eta(t.double()).log()
    # five standard errors of 40,000 draws
    assert log_eta.mean().item() == pytest.approx(-1.0, abs=0.035)
    assert log_eta.std().item() == pytest.approx(1.4, abs=0.025)


def test_normalised_tangents_have_a_root_mean_square_of_almost_1() -> None:
    g = torch.randn(3, 5, dtype=torch.float64) * times(1e3, 0.3, 1e-3)[:, None]
    size, rms = (value.square().mean(1).sqrt() for value in (normalised(g, offset=0.1), g))
    torch.testing.assert_close(size, rms / (rms + 0.1))
    torch.testing.assert_close(normalised(g, offset=0.1)[2] / g[2], (1 / (rms[2] + 0.1)).expand(5))


@pytest.mark.parametrize(
    ("update", "warmup", "share"), [(0, 10, 0.0), (5, 10, 0.5), (10, 10, 1.0), (99, 10, 1.0), (0, 0, 1.0)]
)
def test_the_unstable_part_fades_in(
    known_turn: MakeTurn, gaussian_teacher: GaussianDenoiser, update: int, warmup: int, share: float
) -> None:
    """At the exact map what remains of the tangent is the first term, times 1 - share."""
    x0, student = 1.3 + 0.7 * torch.randn(16, 2, dtype=torch.float64), ExactMap(gaussian_teacher)
    roles = {"student": student, "teacher": gaussian_teacher, "data": Data(x0=x0)}
    sizes = []
    for turn, objective in (
        (known_turn(x0, update=update, **roles), SCM(times=TIMES, warmup=warmup)),
        (known_turn(x0, update=0, **roles), SCM(times=TIMES, warmup=1)),
    ):
        sizes.append(objective.student_loss(turn)[1]["tangent_rms"].item())
    assert sizes[1] > 0.05
    assert sizes[0] == pytest.approx((1 - share) * sizes[1], abs=1e-9)


def test_at_the_start_of_the_warm_up_the_student_moves_to_the_teacher(
    known_turn: MakeTurn, gaussian_teacher: GaussianDenoiser
) -> None:
    class Moved(LearntDenoiser):
        def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
            return gaussian_teacher(x_t, t, None) + self.scale

    x0, student = torch.randn(16, 2, dtype=torch.float64), Moved()
    turn = known_turn(x0, student=student, teacher=gaussian_teacher, data=Data(x0=x0))
    SCM(times=TIMES).student_loss(turn)[0].backward()
    assert student.scale.grad is not None
    assert student.scale.grad > 0  # 0.7 above the teacher: descent lowers it


def test_differences_stand_in_for_forward_mode(
    known_turn: MakeTurn, gaussian_teacher: GaussianDenoiser
) -> None:
    x0, student = torch.randn(16, 2, dtype=torch.float64), LearntDenoiser()
    grads = []
    for derivative in ("jvp", "difference"):
        turn = known_turn(x0, student=student, teacher=gaussian_teacher, data=Data(x0=x0))
        loss, _ = SCM(times=TIMES, warmup=0, derivative=derivative).student_loss(turn)
        grads += torch.autograd.grad(loss, [student.scale])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=0)
    assert grads[0] != grads[1]


@pytest.mark.parametrize("source", ["teacher", "data"])
@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_layout_changes_neither_loss_nor_gradient(
    layouts_agree: Callable[..., None],
    gaussian_teacher: GaussianDenoiser,
    source: Source,
    derivative: Derivative,
) -> None:
    student = LearntDenoiser()
    objective = SCM(source=source, times=TIMES, warmup=0, derivative=derivative)
    layouts_agree(
        lambda turn: objective.student_loss(turn)[0],
        parameters=[student.scale],
        student=student,
        teacher=gaussian_teacher,
    )


def test_half_precision_samples_are_compared_in_float32() -> None:
    class Half(LearntDenoiser):
        def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
            assert x_t.dtype == torch.bfloat16
            return self.scale.bfloat16() * x_t

    student = Half()
    turn = Turn(student=student, data=Data(x0=torch.randn(8, 3).bfloat16()))
    loss, _ = SCM(source="data").student_loss(turn)
    assert loss.dtype == torch.float32
    loss.backward()
    assert student.scale.grad is not None


def test_needs_follow_the_source() -> None:
    assert SCM().needs == {"student", "data", "teacher"}
    assert SCM(source="data").needs == {"student", "data"}


@pytest.mark.parametrize("settings", [{"sigma_data": 0.0}, {"offset": 0.0}, {"warmup": -1}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        SCM(**settings)


def test_a_teacher_on_another_path_is_refused_with_the_remedy(
    known_turn: MakeTurn, gaussian_teacher: GaussianDenoiser
) -> None:
    x0 = torch.randn(4, 2)
    student = NetworkDenoiser(nn.Identity(), path=VPPath())
    with pytest.raises(ValueError, match="OnPath"):
        SCM().student_loss(known_turn(x0, student=student, teacher=gaussian_teacher, data=Data(x0=x0)))


@pytest.mark.parametrize("step", [0.02, 0.1])
def test_the_step_of_the_difference_is_the_given_one(known_turn: MakeTurn, step: float) -> None:
    """The distance of the times that the student is asked at, before the one that is trained."""
    asked: list[Tensor] = []

    class Listening(ExactMap):
        def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
            asked.append(t)
            return super().__call__(x_t, t, condition)

    x0, teacher = torch.randn(8, 3, dtype=torch.float64), GaussianDenoiser(mean=1.3, std=0.7)
    turn = known_turn(x0, student=Listening(teacher), teacher=teacher, data=Data(x0=x0))
    SCM(times=TIMES, derivative="difference", difference_step=step).student_loss(turn)
    before, after, trained = asked
    torch.testing.assert_close(after - before, torch.full_like(before, 2 * step))
    torch.testing.assert_close((after + before) / 2, trained)
