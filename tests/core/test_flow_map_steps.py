"""Rollouts of flow maps: exact in any number of steps, and where the gradient enters."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser, GaussianFlowMap
from fewstep.core.denoisers import FlowMap, NetworkDenoiser, NetworkFlowMap
from fewstep.core.paths import LinearPath, VPPath
from fewstep.core.rollouts import FewStep, FlowMapSteps
from fewstep.core.schedules import step_grid

TIMES = (1.0, 0.75, 0.5, 0.25)
EXACT = GaussianFlowMap(mean=1.3, std=0.7)


class StepwiseFlowMap(nn.Module):
    """u = slope_k x_t + r with a slope of its own for each step k."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()
        self.slopes = nn.ParameterList([torch.tensor(value) for value in (0.6, 0.8, 0.5, 0.9)])
        self.calls: list[tuple[float, float, bool]] = []

    def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
        self.calls.append((float(t[0]), float(r[0]), torch.is_grad_enabled()))
        return self.slopes[TIMES.index(float(t[0]))] * x_t + r[:, None]

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        raise AssertionError("a flow map jumps by its average velocity")


@given(times=st.lists(st.floats(0.01, 0.99), max_size=5, unique=True))
def test_an_exact_average_velocity_gives_the_exact_map_in_any_steps(times: list[float]) -> None:
    noise = torch.randn(6, 3, dtype=torch.float64)
    x0 = FlowMapSteps((1.0, *sorted(times, reverse=True))).rollout(EXACT, noise, None)
    torch.testing.assert_close(x0, 1.3 + 0.7 * noise, rtol=1e-12, atol=1e-12)


def test_an_instantaneous_velocity_does_not() -> None:
    class Instantaneous(NetworkFlowMap):
        def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
            return EXACT.average_velocity(x_t, t, t, condition)

    noise = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    x0 = FlowMapSteps((1.0,)).rollout(Instantaneous(nn.Identity()), noise, None)
    torch.testing.assert_close(x0, torch.full((2, 1), 1.3, dtype=torch.float64))


def test_a_rollout_is_the_stated_chain_of_jumps() -> None:
    student, noise = StepwiseFlowMap(), torch.randn(5, 2)
    x = noise
    for k, (t, r) in enumerate(zip(TIMES, (*TIMES[1:], 0.0), strict=True)):
        x = x - (t - r) * (student.slopes[k] * x + r)
    torch.testing.assert_close(FlowMapSteps(TIMES).rollout(student, noise, None), x)
    assert [call[:2] for call in student.calls] == [(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)]


@pytest.mark.parametrize("exit_step", [0, 1, 2, 3])
def test_an_exit_jumps_to_0_and_holds_the_only_gradient(exit_step: int) -> None:
    student = StepwiseFlowMap()
    noise = torch.randn(8, 1)
    x0, call = FlowMapSteps(TIMES).rollout_and_call(student, noise, None, exit_step=exit_step)
    x0.sum().backward()
    assert [slope.grad is not None for slope in student.slopes] == [k == exit_step for k in range(4)]
    assert student.calls[-1] == (TIMES[exit_step], 0.0, True)
    assert [grad for *_, grad in student.calls[:-1]] == [False] * exit_step
    torch.testing.assert_close(call.t, torch.full((8,), TIMES[exit_step]))
    torch.testing.assert_close(call.t_next, torch.full((8,), (*TIMES, 0.0)[exit_step + 1]))
    torch.testing.assert_close(x0, call.x_t - TIMES[exit_step] * student.slopes[exit_step] * call.x_t)


def test_unrolling_keeps_the_gradient_of_all_calls() -> None:
    student = StepwiseFlowMap()
    FlowMapSteps(TIMES).rollout_and_call(student, torch.randn(8, 1), None, unroll=True)[0].sum().backward()
    assert all(slope.grad is not None for slope in student.slopes)


def test_it_draws_no_noise_and_starts_at_the_sigma_of_its_first_time() -> None:
    noise, state = torch.randn(4, 2, dtype=torch.float64), torch.get_rng_state()
    x0 = FlowMapSteps((0.8, 0.4)).rollout(EXACT, noise, None)
    assert torch.equal(torch.get_rng_state(), state)
    time, zero = torch.tensor([0.8, 0.0], dtype=torch.float64)
    exact = GaussianDenoiser(mean=1.3, std=0.7).transport(0.8 * noise, time, zero)
    torch.testing.assert_close(x0, exact, rtol=1e-12, atol=1e-12)


def test_half_precision_samples_stay_half_and_times_do_not() -> None:
    dtypes: list[torch.dtype] = []

    class Recorded(NetworkFlowMap):
        def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
            dtypes.extend([x_t.dtype, t.dtype, r.dtype])
            return x_t

    x0 = FlowMapSteps((1.0,)).rollout(Recorded(nn.Identity()), torch.randn(2, 3).bfloat16(), None)
    assert x0.dtype == torch.bfloat16
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32]


def test_exit_steps_are_drawn_as_those_of_other_rollouts() -> None:
    for seed in range(5):
        drawn = [
            rollout.draw_exit_step(torch.Generator().manual_seed(seed))
            for rollout in (FlowMapSteps(TIMES), FewStep(TIMES))
        ]
        assert drawn[0] == drawn[1]


def test_students_of_one_time_or_on_other_paths_are_refused_with_the_remedy() -> None:
    class Curved(NetworkFlowMap):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            self.path = VPPath()

    assert isinstance(Curved(), FlowMap)
    for student in (NetworkDenoiser(nn.Identity()), Curved()):
        with pytest.raises(ValueError, match=r"NetworkFlowMap or roll it out with FewStep"):
            FlowMapSteps(TIMES).rollout(student, torch.ones(2, 1), None)


@pytest.mark.parametrize("times", [(), (0.5, 0.5), (0.5, 0.75), (1.0, 0.0)])
def test_times_that_do_not_descend_to_above_0_are_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="times"):
        FlowMapSteps(times)


@pytest.mark.parametrize("exit_step", [-1, 4])
def test_an_exit_beyond_the_steps_is_refused(exit_step: int) -> None:
    with pytest.raises(ValueError, match="exit_step"):
        FlowMapSteps(step_grid(4)).rollout(EXACT, torch.ones(2, 1), None, exit_step=exit_step)
