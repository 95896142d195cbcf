"""Re-DMD: DMD's gradient times exp(beta r), normalised, clamped and resumable."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewstep.core.analytic import GaussianDenoiser, MixtureDenoiser
from fewstep.core.denoisers import Denoiser
from fewstep.core.layouts import Packed
from fewstep.core.objectives.contract import Objective, Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.re_dmd import ReDMD
from fewstep.core.rewards.contract import Reward

TEACHER = GaussianDenoiser(mean=1.3, std=0.7)
CRITIC = GaussianDenoiser(mean=0.4, std=1.1)


@dataclass(frozen=True)
class GivenReward(Reward):
    """Scores every sample by a fixed list, whatever its pixels."""

    values: tuple[float, ...]
    name: str = "given"
    differentiable: bool = False

    def score(self, pixels: Tensor, condition: object = None) -> Tensor:
        return torch.tensor(self.values, dtype=torch.float64)


@dataclass(frozen=True)
class PositiveReward(Reward):
    name: str = "positive"
    differentiable: bool = False

    def score(self, pixels: Tensor, condition: object = None) -> Tensor:
        return (pixels[:, 0] > 0).double()


def plain(values: tuple[float, ...], beta: float = 2.0) -> ReDMD:
    """The paper's released form: neither normalised nor clamped."""
    return ReDMD(GivenReward(values), beta=beta, normalise=False, max_weight=None)


def gradient(
    x: Tensor, objective: Objective, *, teacher: Denoiser = TEACHER, weight: Tensor | None = None
) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    turn = Turn(
        sample=Sample(x=leaf, weight=weight),
        teacher=teacher,
        critic=CRITIC,
        decode=torch.clone,
        generator=torch.Generator().manual_seed(7),
    )
    loss, _ = objective.student_loss(turn)
    (grad,) = torch.autograd.grad(loss, leaf)
    return grad


def test_the_gradient_of_each_sample_is_exp_beta_r_times_dmds() -> None:
    """T-RD-1."""
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    rewards = (-1.0, 0.0, 0.7)
    factors = torch.tensor(rewards, dtype=torch.float64).mul(2.0).exp()[:, None, None]
    torch.testing.assert_close(gradient(x, plain(rewards)), factors * gradient(x, DMD()), rtol=1e-12, atol=0)


def test_beta_0_is_dmd() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(gradient(x, plain((-1.0, 0.0, 9.0), beta=0.0)), gradient(x, DMD()))


@given(reward=st.floats(-1e6, 1e6))
def test_a_constant_reward_normalised_is_dmd_whatever_its_value(reward: float) -> None:
    """T-RD-2, second half."""
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
    objective = ReDMD(GivenReward((reward,) * 3))
    for _ in range(3):
        torch.testing.assert_close(gradient(x, objective), gradient(x, DMD()), rtol=1e-8, atol=0)


def test_adam_walks_the_same_way_under_a_constant_reward() -> None:
    """T-RD-2: a constant factor on the gradient leaves Adam's steps alone, up to its epsilon."""
    ends = []
    for objective in (DMD(), plain((1.5,) * 64)):
        generator = torch.Generator().manual_seed(3)
        mean = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([mean], lr=1e-2, betas=(0.0, 0.999))
        for _ in range(30):
            x = mean + torch.randn(64, 2, generator=generator, dtype=torch.float64)
            turn = Turn(
                sample=Sample(x=x), teacher=TEACHER, critic=CRITIC, decode=torch.clone, generator=generator
            )
            loss, _ = objective.student_loss(turn)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        ends.append(mean.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=0)
    assert ends[0] > 0.2


def test_a_perfect_student_has_no_gradient_for_any_reward() -> None:
    """T-RD-3: the fixed point is DMD's."""
    x = torch.randn(3, 4, dtype=torch.float64)
    assert (gradient(x, plain((5.0, -5.0, 0.3)), teacher=CRITIC) == 0).all()


RUNS, SAMPLES = 10, 64


def ends_of_training(beta: float) -> Tensor:
    """The means of Gaussian students of two modes at -2 and 2, of which the reward likes the second.

    All runs in one batch: neither the exact gradient nor the plain weights mix samples, and Adam is blind to
    the scale of the loss.
    """
    teacher = MixtureDenoiser(centres=torch.tensor([[-2.0], [2.0]]), std=0.1)
    # The exact KL gradient: under DMD's normalised one this student covers both modes, whatever the reward.
    objective = ReDMD(PositiveReward(), dmd=DMD(weighting="kl"), beta=beta, normalise=False, max_weight=None)
    means = torch.zeros(RUNS, requires_grad=True)
    stds = torch.full((RUNS,), 0.3, requires_grad=True)
    optimiser = torch.optim.Adam([means, stds], lr=2e-2, betas=(0.0, 0.999))
    for _ in range(300):
        mean, std = (value.repeat_interleave(SAMPLES)[:, None] for value in (means, stds))
        critic = GaussianDenoiser(mean=mean.detach(), std=std.detach())
        sample = Sample(x=mean + std * torch.randn(RUNS * SAMPLES, 1))
        turn = Turn(sample=sample, teacher=teacher, critic=critic, decode=torch.clone)
        optimiser.zero_grad()
        objective.student_loss(turn)[0].backward()
        optimiser.step()
    return means.detach()


def test_a_student_too_small_for_the_teacher_chooses_the_rewarded_mode() -> None:
    """T-RD-4."""
    assert ((ends_of_training(beta=2.0) - 2).abs() < 0.1).sum() >= 9


def test_without_the_reward_it_goes_either_way() -> None:
    ends = ends_of_training(beta=0.0)
    assert ends.min() < -0.5
    assert ends.max() > 0.5


def test_normalised_weights_average_1_over_batches() -> None:
    objective = ReDMD(GivenReward(()), max_weight=None, decay=0.999)
    generator = torch.Generator().manual_seed(0)
    weights = [
        objective.weights(3 + 0.5 * torch.randn(64, generator=generator, dtype=torch.float64))
        for _ in range(200)
    ]
    # exp(2 r) has relative deviation 1.3 here; 6400 draws after settling give 0.016; five of them.
    assert torch.stack(weights[100:]).mean().item() == pytest.approx(1, abs=0.08)


def test_the_running_mean_starts_as_the_plain_mean_of_batches() -> None:
    objective = ReDMD(GivenReward(()), beta=1.0, max_weight=None)
    batches = torch.tensor([[0.0, 1.0], [2.0, 0.5]], dtype=torch.float64)
    objective.weights(batches[0])
    second = objective.weights(batches[1])
    torch.testing.assert_close(second, batches[1].exp() / batches.exp().mean())


def test_the_running_mean_forgets_at_its_decay() -> None:
    objective = ReDMD(GivenReward(()), beta=1.0, decay=0.5, max_weight=None)
    for value in (0.0, 1.0, 2.0):
        weight = objective.weights(torch.tensor([value], dtype=torch.float64))
    mean = 0.5 * (0.5 * (1 + math.e)) + 0.5 * math.e**2
    assert weight.item() == pytest.approx(math.e**2 / mean)


@given(rewards=st.lists(st.floats(-1e8, 1e8), min_size=1, max_size=6))
def test_clamped_weights_stay_inside_their_limits(rewards: list[float]) -> None:
    objective = ReDMD(GivenReward(()), max_weight=4.0)
    weights = objective.weights(torch.tensor(rewards, dtype=torch.float64))
    assert (weights >= 0.25 - 1e-12).all()
    assert (weights <= 4 + 1e-12).all()


def test_a_resumed_run_weighs_as_if_never_stopped() -> None:
    rewards = torch.randn(6, 4, dtype=torch.float64)
    running = ReDMD(GivenReward(()))
    for batch in rewards[:3]:
        running.weights(batch)
    resumed = ReDMD(GivenReward(()))
    resumed.load_state_dict(copy.deepcopy(running.state_dict()))
    for batch in rewards[3:]:
        assert torch.equal(resumed.weights(batch), running.weights(batch))


def test_rewards_and_frame_weights_multiply() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    frames = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64).expand(2, 3)
    rewards = (0.5, -0.5)
    factors = torch.tensor(rewards, dtype=torch.float64).mul(2.0).exp()[:, None, None]
    expected = factors * frames[..., None] * gradient(x, DMD())
    torch.testing.assert_close(gradient(x, plain(rewards), weight=frames), expected, rtol=1e-12, atol=0)


def test_pixels_are_decoded_once_without_gradient() -> None:
    decoded: list[tuple[bool, Tensor]] = []

    def decode(x: Tensor) -> Tensor:
        decoded.append((torch.is_grad_enabled(), x.detach()))
        return torch.zeros(2)

    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    turn = Turn(sample=Sample(x=x), teacher=TEACHER, critic=CRITIC, decode=decode)
    plain((0.0, 1.0)).student_loss(turn)
    ((with_gradient, seen),) = decoded
    assert not with_gradient
    assert torch.equal(seen, x.detach())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number_stops_the_run_and_leaves_the_mean_alone(bad: float) -> None:
    objective = ReDMD(GivenReward((0.0, bad)))
    with pytest.raises(ValueError, match="reward 'given'"):
        gradient(torch.randn(2, 3, dtype=torch.float64), objective)
    assert objective.num_batches == 0


def test_a_missing_decoder_is_named() -> None:
    turn = Turn(sample=Sample(x=torch.randn(1, 3)), teacher=TEACHER, critic=CRITIC)
    with pytest.raises(ValueError, match="decode"):
        plain((0.0,)).student_loss(turn)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="decay"):
        ReDMD(GivenReward(()), decay=1.0)
    with pytest.raises(ValueError, match="max_weight"):
        ReDMD(GivenReward(()), max_weight=0.5)


def test_diagnostics_report_rewards_and_weights() -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    turn = Turn(sample=Sample(x=x), teacher=TEACHER, critic=CRITIC, decode=torch.clone)
    _, diagnostics = plain((0.0, 1.0)).student_loss(turn)
    assert diagnostics["reward_mean"] == 0.5
    assert diagnostics["reward_weight_max"].item() == pytest.approx(math.e**2)
    assert diagnostics["reward_weight_mean"].item() == pytest.approx((1 + math.e**2) / 2)
    assert "gap_rms" in diagnostics


def test_the_critic_never_sees_the_reward() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    losses = [
        objective.critic_loss(
            Turn(sample=Sample(x=x), critic=CRITIC, generator=torch.Generator().manual_seed(1))
        )[0]
        for objective in (DMD(), plain((1.0,) * 4))
    ]
    assert torch.equal(losses[0], losses[1])


def test_re_dmd_is_an_objective_that_needs_a_decoder() -> None:
    assert plain((0.0,)).needs == {"teacher", "critic", "sample", "decode"}


@dataclass(frozen=True)
class NumberedReward(Reward):
    """Scores samples by their number in the batch of three, or that of the one which is alone."""

    name: str = "numbered"
    differentiable: bool = False

    def score(self, pixels: Tensor, condition: object = None) -> Tensor:
        return torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("frames", [False, True])
def test_the_layout_changes_neither_loss_nor_gradient(
    layouts_agree: Callable[..., None], frames: bool
) -> None:
    def loss(turn: Turn) -> Tensor:
        assert turn.sample is not None
        weight = turn.sample.layout.expand(torch.tensor([1.0, 0.5, 2.0]).double(), turn.sample.x)
        weighted = replace(turn.sample, weight=weight.expand_as(turn.sample.x)) if frames else turn.sample
        return ReDMD(NumberedReward()).student_loss(replace(turn, sample=weighted))[0]

    layouts_agree(loss, teacher=TEACHER, critic=CRITIC, decode=torch.clone, alone=False)


def test_a_weight_per_sample_multiplies_in_a_packed_batch_too() -> None:
    x = torch.randn(3, 2, dtype=torch.float64)
    layout = Packed(torch.tensor([1, 0, 1]), 2)
    turn = Turn(teacher=TEACHER, critic=CRITIC, decode=torch.clone)
    losses = [
        plain(rewards).student_loss(
            replace(
                turn,
                sample=Sample(x=x, layout=layout, weight=weight),
                generator=torch.Generator().manual_seed(0),
            )
        )[0]
        for rewards, weight in [
            ((0.5, 0.25), None),
            ((0.0, 0.0), torch.tensor([1.0, 0.5], dtype=torch.float64).exp()),
            ((0.25, 0.0), torch.tensor([0.5, 0.5], dtype=torch.float64).exp()),
        ]
    ]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])
