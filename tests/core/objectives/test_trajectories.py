"""What methods on trajectories share: pairs of times, velocities, derivatives along the flow."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser, GaussianFlowMap
from fewstep.core.denoisers import NetworkDenoiser, NetworkFlowMap, velocity_of
from fewstep.core.layouts import DENSE
from fewstep.core.objectives.contract import Data, Turn
from fewstep.core.objectives.mean_flow import MeanFlow
from fewstep.core.objectives.trajectories import (
    DIFFERENCE_STEP,
    Derivative,
    TimePairs,
    flow_map,
    teacher_on,
    total_derivative,
    velocity_from,
)
from fewstep.core.paths import LinearPath, VPPath
from fewstep.core.schedules import TimeSampler, UniformTimes

DERIVATIVES: list[Derivative] = ["jvp", "difference"]
COUNT = 20_000


def pairs_of(pairs: TimePairs) -> tuple[Tensor, Tensor]:
    turn = Turn(generator=torch.Generator().manual_seed(0))
    return pairs.sample(turn, torch.zeros(COUNT, 1), DENSE)


def test_shares_of_a_batch_are_as_stated() -> None:
    anchors = ((1.0, 0.0), (0.5, 0.25))
    t, r = pairs_of(TimePairs(times=UniformTimes(), equal_fraction=0.5, anchor_fraction=0.2, anchors=anchors))
    assert ((r >= 0) & (r <= t) & (t <= 1)).all()
    anchored = [((t == start) & (r == end)).double().mean().item() for start, end in anchors]
    # five standard errors of 20,000 draws: 0.018 at a half, 0.011 at a tenth
    assert (t == r).double().mean().item() == pytest.approx(0.5, abs=0.018)
    assert anchored == pytest.approx([0.1, 0.1], abs=0.011)


def test_both_ends_are_drawn_and_sorted() -> None:
    t, r = pairs_of(TimePairs(times=UniformTimes(), equal_fraction=0.0))
    assert (t >= r).all()
    assert (t.mean().item(), r.mean().item()) == pytest.approx((2 / 3, 1 / 3), abs=0.009)


def test_a_distribution_of_its_own_for_r_leaves_t_as_drawn(fixed_times: Callable[..., TimeSampler]) -> None:
    pairs = TimePairs(times=fixed_times(0.3, 0.8), r_times=fixed_times(0.5), equal_fraction=0.0)
    t, r = pairs_of(pairs)
    assert t[:2].tolist() == [0.3, 0.8]
    assert r[:2].tolist() == [0.3, 0.5]


@pytest.mark.parametrize(
    "settings",
    [
        {"equal_fraction": 0.8, "anchor_fraction": 0.3},
        {"equal_fraction": -0.1},
        {"anchors": ((0.5, 0.5),)},
        {"anchors": ()},
    ],
)
def test_shares_and_anchors_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        TimePairs(**settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("derivative", "tolerance"), [("jvp", 1e-12), ("difference", 1e-4)])
def test_derivative_along_the_flow_is_the_chain_rule(derivative: Derivative, tolerance: float) -> None:
    x, u = torch.randn(2, 5, 3, dtype=torch.float64)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    got = total_derivative(
        lambda x, t: x.square() * t[:, None] + t[:, None] ** 3, x, t, u, derivative=derivative
    )
    time = t[:, None]
    expected = 2 * x * time * u + x.square() + 3 * time.square()
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_differences_never_leave_the_times_from_0_to_1() -> None:
    seen: list[Tensor] = []

    def recorded(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return 3 * x + 2 * t[:, None]

    x, u, t = torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([0.0, 1.0])
    slope = total_derivative(recorded, x, t, u, derivative="difference", step=0.25)
    assert torch.stack(seen).T.tolist() == [[0.0, 0.25], [0.75, 1.0]]
    torch.testing.assert_close(slope, torch.full((2, 1), 5.0))


def test_difference_and_forward_mode_agree_for_a_network_in_float32() -> None:
    """T-MF-3: within 1e-3."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))
    x, u, t = torch.randn(64, 2), torch.randn(64, 2), torch.rand(64)
    jvp, difference = (
        total_derivative(lambda x, t: network(torch.cat([x, t[:, None]], 1)), x, t, u, derivative=derivative)
        for derivative in DERIVATIVES
    )
    assert (jvp - difference).norm() < 1e-3 * jvp.norm()
    assert not jvp.requires_grad


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_dropout_is_that_of_the_next_call(derivative: Derivative) -> None:
    dropout = nn.Dropout(0.5)
    x, t = torch.randn(8, 4, dtype=torch.float64), torch.full((8,), 0.5, dtype=torch.float64)
    slope = total_derivative(
        lambda x, t: dropout(t[:, None] * x), x, t, torch.ones_like(x), derivative=derivative
    )
    expected = dropout(0.5 + x)
    assert 0 < (expected == 0).double().mean() < 1
    torch.testing.assert_close(slope, expected)


def test_half_precision_differences_come_in_float32() -> None:
    x, t = torch.randn(4, 2, dtype=torch.bfloat16), torch.rand(4)
    for derivative in DERIVATIVES:
        slope = total_derivative(lambda x, t: 2 * x, x, t, torch.ones(4, 2), derivative=derivative, step=0.25)
        assert slope.dtype == torch.float32
        torch.testing.assert_close(slope, torch.full((4, 2), 2.0), rtol=0.1, atol=0.1)


def test_velocity_is_the_teachers_or_that_of_the_sample(gaussian_teacher: GaussianDenoiser) -> None:
    x0, eps = torch.randn(2, 6, 3, dtype=torch.float64)
    t = torch.linspace(0.2, 0.9, 6, dtype=torch.float64)
    x_t = LinearPath().add_noise(x0, eps, t[:, None])
    turn = Turn(teacher=gaussian_teacher, data=Data(x0=x0))
    arguments = {"x_t": x_t, "eps": eps, "t": t}
    of_data = velocity_from("data", turn, MeanFlow(), LinearPath(), **arguments)
    of_teacher = velocity_from("teacher", turn, MeanFlow(), LinearPath(), **arguments)
    torch.testing.assert_close(of_data, eps - x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(of_teacher, velocity_of(gaussian_teacher, x_t, t, None), rtol=0, atol=0)
    offset = LinearPath(sigma_min=0.1)
    torch.testing.assert_close(
        velocity_from("data", turn, MeanFlow(), offset, **arguments), 0.9 * eps - x0, rtol=1e-12, atol=1e-12
    )


def test_a_velocity_of_half_precision_data_is_in_float32() -> None:
    x0, eps = torch.randn(2, 6, 3).bfloat16()
    turn = Turn(data=Data(x0=x0))
    velocity = velocity_from("data", turn, MeanFlow(), LinearPath(), x_t=x0, eps=eps, t=torch.full((6,), 0.5))
    assert torch.equal(velocity, eps.float() - x0.float())


def test_students_and_teachers_that_do_not_fit_are_refused_with_the_remedy(
    gaussian_teacher: GaussianDenoiser,
) -> None:
    class Curved(NetworkFlowMap):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            self.path = VPPath()

    with pytest.raises(ValueError, match=r"MeanFlow needs a student of two times.*NetworkFlowMap"):
        flow_map(NetworkDenoiser(nn.Identity()), MeanFlow())
    with pytest.raises(ValueError, match="linear path"):
        flow_map(Curved(), MeanFlow())
    exact = GaussianFlowMap()
    assert flow_map(exact, MeanFlow()) is exact
    with pytest.raises(ValueError, match="OnPath"):
        teacher_on(VPPath(), Turn(teacher=gaussian_teacher), MeanFlow())
    assert teacher_on(LinearPath(), Turn(teacher=gaussian_teacher), MeanFlow()) is gaussian_teacher


@pytest.mark.parametrize("stored", [False, True])
def test_differences_in_half_precision_take_a_step_above_its_rounding(stored: bool) -> None:
    """With the step of float32, two outputs in bfloat16 differ by little but their rounding."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))
    x, u, t = torch.randn(64, 2), torch.randn(64, 2), torch.rand(64)

    def function(x: Tensor, t: Tensor) -> Tensor:
        return network(torch.cat([x, t[:, None].to(x.dtype)], 1))

    exact = total_derivative(function, x, t, u, derivative="jvp")

    def error(step: float | None) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=not stored):
            slope = total_derivative(function, x, t, u, derivative="difference", step=step)
        return float((slope - exact).norm() / exact.norm())

    if stored:
        network, x = network.bfloat16(), x.bfloat16()
    assert error(None) < 0.15 < error(DIFFERENCE_STEP)


def test_no_step_of_no_length() -> None:
    x, t = torch.randn(4, 2), torch.rand(4)
    with pytest.raises(ValueError, match=r"step=0\.0 must be above 0"):
        total_derivative(lambda x, t: x, x, t, x, derivative="difference", step=0.0)
