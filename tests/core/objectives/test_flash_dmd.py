"""Flash-DMD: which step gets which loss, the critic's pull, preferences of noisy states."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.discriminators import PixelDiscriminator
from fewstep.core.objectives.contract import Data, Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.flash_dmd import (
    FlashDMD,
    FlashDMDPreference,
    preference_losses,
    transition_log_ratio,
)
from fewstep.core.paths import LinearPath
from fewstep.core.rollouts import Call, FewStep

TEACHER = GaussianDenoiser(mean=1.3, std=0.7)
CRITIC = GaussianDenoiser(mean=0.4, std=1.1)
SHAPE = (2, 2, 3, 4, 4)


def decode(x: Tensor) -> Tensor:
    """Pixels of samples that are pixels already, but for their range."""
    return 0.5 + 0.1 * x


def flash(**settings: object) -> FlashDMD:
    torch.manual_seed(5)
    discriminator = PixelDiscriminator(channels=(4, 6), hidden=5).double()
    return FlashDMD(discriminator, **settings)  # pyright: ignore[reportArgumentType]


def turn_of(x: Tensor, *times: float, **roles: object) -> Turn:
    """A turn of samples whose last calls were at ``times``, each on the way to half of it."""
    t = torch.tensor(times, dtype=torch.float64)
    call = Call(x_t=torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view(x.shape), t=t, t_next=t / 2)
    data = Data(x0=torch.linspace(-2, 2, x.numel(), dtype=torch.float64).view(x.shape))
    turn = Turn(sample=Sample(x=x, call=call), teacher=TEACHER, critic=CRITIC, data=data, decode=decode)
    return replace(turn, generator=torch.Generator().manual_seed(7), **roles)


def gradient(method: FlashDMD | FlashDMDPreference | DMD, turn: Turn) -> Tensor:
    assert turn.sample is not None
    leaf = turn.sample.x.detach().clone().requires_grad_()
    loss, _ = method.student_loss(replace(turn, sample=replace(turn.sample, x=leaf)))
    return torch.autograd.grad(loss, leaf)[0]


def adversarial_gradient(method: FlashDMD, x: Tensor) -> Tensor:
    """Of the plain formula, over the whole batch."""
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(softplus(-method.discriminator(decode(leaf))).mean(), leaf)[0]


def test_noisy_steps_get_dmds_gradient_and_clean_ones_the_discriminators() -> None:
    """T-FD-1, sample by sample; a step at the threshold counts as noisy."""
    x = torch.randn(SHAPE, dtype=torch.float64)
    method = flash(threshold=0.5)
    plain, judged = gradient(DMD(), turn_of(x, 0.5, 0.49)), adversarial_gradient(method, x)
    mixed = gradient(method, turn_of(x, 0.5, 0.49))
    torch.testing.assert_close(mixed[0], plain[0])
    torch.testing.assert_close(mixed[1], 3e-3 * judged[1])


class StepBias(nn.Module):
    """A student whose calls at and above 0.5 use one parameter, and those below another."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()
        self.noisy = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
        self.clean = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return 0.3 * x_t + (self.noisy if t[0] >= 0.5 else self.clean)


@pytest.mark.parametrize("exit_step", [0, 1, 2, 3])
def test_each_loss_reaches_only_what_its_steps_use(exit_step: int) -> None:
    """T-FD-1: with the teacher equal to the critic, DMD is 0 and the noisy parameter gets nothing at all."""
    student, rollout = StepBias(), FewStep((1.0, 0.75, 0.5, 0.25))
    noise = torch.randn(SHAPE, dtype=torch.float64)
    for teacher, moves_noisy in ((TEACHER, True), (CRITIC, False)):
        x, call = rollout.rollout_and_call(student, noise, None, exit_step=exit_step)
        turn = replace(turn_of(x, 1, 1), sample=Sample(x=x, call=call), teacher=teacher)
        loss, diagnostics = flash().student_loss(turn)
        grads = torch.autograd.grad(loss, [student.noisy, student.clean], materialize_grads=True)
        assert (grads[0] != 0) == (moves_noisy and exit_step < 3)
        assert (grads[1] != 0) == (exit_step == 3)
        assert ("gan" in diagnostics, "gap_rms" in diagnostics) == (exit_step == 3, exit_step < 3)


def test_at_threshold_0_it_is_dmd() -> None:
    x = torch.randn(SHAPE, dtype=torch.float64)
    turns = [turn_of(x, 0.1, 0.9) for _ in range(2)]
    torch.testing.assert_close(gradient(flash(threshold=0.0), turns[0]), gradient(DMD(), turns[1]))


def test_pixels_are_decoded_only_for_the_discriminator() -> None:
    def forbidden(x: Tensor) -> Tensor:
        raise AssertionError("decoded for nothing")

    x = torch.randn(SHAPE, dtype=torch.float64)
    method = flash()
    method.student_loss(turn_of(x, 0.9, 0.9, decode=forbidden))
    method.critic_loss(turn_of(x, 0.9, 0.9, decode=forbidden))
    with pytest.raises(AssertionError, match="decoded"):
        method.student_loss(turn_of(x, 0.1, 0.1, decode=forbidden))


def test_the_critic_only_denoises_and_the_discriminator_sees_clean_steps(
    learnt_gaussian: Callable[..., Any],
) -> None:
    """The formula written out, with one clean sample of two; nothing reaches the sample."""
    method, critic = flash(critic_weight=0.5), learnt_gaussian()
    x = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    turns = [turn_of(x, 0.9, 0.3, critic=critic) for _ in range(2)]
    loss, _ = method.critic_loss(turns[0])
    plain, _ = DMD().critic_loss(turns[1])
    assert turns[0].data is not None
    real, fake = method.discriminator(decode(turns[0].data.x0)), method.discriminator(decode(x.detach()))
    judged = softplus(-real).mean() + softplus(fake)[1].mean()
    torch.testing.assert_close(loss, plain + 0.5 * judged)
    weights = [x, *critic.parameters(), *method.parameters()]
    grads, expected = (
        torch.autograd.grad(value, weights, materialize_grads=True) for value in (loss, plain + 0.5 * judged)
    )
    torch.testing.assert_close(grads, expected)
    assert (grads[0] == 0).all()


def test_n_pulls_leave_lambda_to_the_n_of_the_distance() -> None:
    """T-FD-2."""
    student, critic = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    start, goal = copy.deepcopy(critic), copy.deepcopy(student)
    method = flash(pull=0.9)
    for _ in range(5):
        method.after_student_step(student, critic)
    for now, before, leader, kept in zip(
        critic.parameters(), start.parameters(), student.parameters(), goal.parameters(), strict=True
    ):
        torch.testing.assert_close(now - leader, 0.9**5 * (before - leader))
        assert torch.equal(leader, kept)


def test_a_pull_of_1_leaves_any_critic_alone() -> None:
    critic = nn.Linear(4, 4)
    before = copy.deepcopy(critic.state_dict())
    flash(pull=1.0).after_student_step(nn.Linear(3, 2), critic)
    assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())


def test_critics_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="pull"):
        flash().after_student_step(nn.Linear(3, 2), nn.Linear(3, 3))


@pytest.mark.parametrize("bad", [{"threshold": 1.5}, {"pull": -0.1}])
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        flash(**bad)


def test_weights_of_frames_reach_both_losses() -> None:
    x = torch.randn(SHAPE, dtype=torch.float64)
    weight = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    turn = turn_of(x, 0.9, 0.1)
    assert turn.sample is not None
    windowed = gradient(flash(), replace(turn, sample=replace(turn.sample, weight=weight)))
    whole = gradient(flash(), turn_of(x, 0.9, 0.1))
    assert (windowed[:, 0] == 0).all()
    torch.testing.assert_close(windowed[:, 1], whole[:, 1])


@pytest.mark.parametrize("loss", ["student_loss", "critic_loss"])
def test_the_layout_changes_neither_loss_nor_gradient(layouts_agree: Callable[..., None], loss: str) -> None:
    """Of samples of noisy steps and of one clean one; a decoder for tokens paints each sample in its mean."""
    method = flash(threshold=0.7)

    def of_turn(turn: Turn) -> Tensor:
        assert turn.sample is not None
        layout = turn.sample.layout

        def paint(x: Tensor) -> Tensor:
            return layout.mean(x)[:, None, None, None, None].expand(-1, 1, 3, 4, 4)

        return getattr(method, loss)(replace(turn, decode=paint))[0]

    # 0.8 and 0.9 are noisy, 0.6 is not: means over real and fake samples are of batches then, not of samples
    layouts_agree(
        of_turn,
        teacher=TEACHER,
        critic=CRITIC,
        parameters=list(method.parameters()) if loss == "critic_loss" else (),
        alone=loss == "student_loss",
    )


def test_a_sample_without_its_last_call_is_refused_with_the_remedy() -> None:
    turn = turn_of(torch.zeros(SHAPE, dtype=torch.float64), 0.5, 0.5)
    assert turn.sample is not None
    with pytest.raises(ValueError, match="rollout_and_call"):
        flash().student_loss(replace(turn, sample=replace(turn.sample, call=None)))


def test_stage_1_needs_data_and_a_decoder() -> None:
    assert flash().needs == {"teacher", "critic", "sample", "data", "decode"}


def test_the_log_ratio_is_that_of_two_gaussians() -> None:
    """T-FD-4, against the densities; their sum over elements is the mean times their number."""
    x_next, mean, reference = torch.randn(3, 4, 5, dtype=torch.float64)
    std = torch.tensor([0.2, 0.5, 1.0, 2.0], dtype=torch.float64)
    normal = torch.distributions.Normal
    expected = normal(mean, std[:, None]).log_prob(x_next) - normal(reference, std[:, None]).log_prob(x_next)
    ratio = transition_log_ratio(x_next, mean, reference, std)
    torch.testing.assert_close(5 * ratio, expected.sum(1))


def test_the_preference_loss_is_ln_2_at_the_reference_and_pushes_the_better_up() -> None:
    """T-FD-3."""
    better, worse = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True).unbind()
    loss = preference_losses(better, worse, 2.0)
    torch.testing.assert_close(loss.detach(), torch.full((3,), math.log(2), dtype=torch.float64))
    slopes = torch.autograd.grad(loss.sum(), [better, worse])
    torch.testing.assert_close(slopes, (torch.full_like(better, -1.0), torch.full_like(worse, 1.0)))


class LikesLarge:
    """A reward of noisy states: their mean."""

    def score(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return x_t.flatten(1).mean(1)


def preference(**settings: object) -> FlashDMDPreference:
    return FlashDMDPreference(flash(), LikesLarge(), **settings)  # pyright: ignore[reportArgumentType]


def test_the_preference_is_the_paper_formula_on_the_best_and_the_worst_of_the_draws() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    reference = GaussianDenoiser(mean=-0.3, std=0.4)
    turn = turn_of(x, 0.6, 0.8, 0.9, target=reference)
    loss, _ = preference(candidates=3, beta=1.7).student_loss(turn)

    again = turn_of(x, 0.6, 0.8, 0.9)
    assert again.sample is not None
    assert again.sample.call is not None
    call = again.sample.call
    s = call.t_next[:, None]
    draws = torch.stack([((1 - s) * x + s * again.noise_like(x)).detach() for _ in range(3)])
    best, worst = draws.mean(2).argmax(0), draws.mean(2).argmin(0)
    mean, mean_reference = (1 - s) * x, (1 - s) * reference(call.x_t, call.t, None)

    def ratio(z: Tensor) -> Tensor:
        return (((z - mean_reference) ** 2 - (z - mean) ** 2) / (2 * s**2)).mean(1)

    rows = torch.arange(3)
    margin = ratio(draws[best, rows]) - ratio(draws[worst, rows])
    expected = -(1.7 * margin).sigmoid().log().mean()
    torch.testing.assert_close(loss, expected)
    (grad,), (expected_grad,) = (torch.autograd.grad(value, x) for value in (loss, expected))
    torch.testing.assert_close(grad, expected_grad)


def test_a_student_that_is_the_reference_loses_ln_2_and_moves_towards_the_reward() -> None:
    x = torch.randn(2, 4, dtype=torch.float64)
    turn = turn_of(x, 0.6, 0.9)
    assert turn.sample is not None
    assert turn.sample.call is not None
    x0 = CRITIC(turn.sample.call.x_t, turn.sample.call.t, None)
    at_reference = replace(turn, target=CRITIC, sample=replace(turn.sample, x=x0))
    loss, _ = preference().student_loss(at_reference)
    assert loss.item() == pytest.approx(math.log(2))
    grad = gradient(preference(), replace(at_reference, generator=torch.Generator().manual_seed(7)))
    assert (grad.mean(1) < 0).all()


def test_stage_1_has_every_sixth_update_and_the_steps_without_a_transition() -> None:
    x = torch.randn(SHAPE, dtype=torch.float64)
    method = preference(ratio=5)
    for update in range(12):
        _, diagnostics = method.student_loss(turn_of(x, 0.9, 0.9, target=CRITIC, update=update))
        assert ("preference_margin" in diagnostics) == (update % 6 != 5)
        assert ("gap_rms" in diagnostics) == (update % 6 == 5)
    assert "gan" in method.student_loss(turn_of(x, 0.3, 0.3, target=CRITIC))[1]
    last = turn_of(x, 0.9, 0.9, target=CRITIC)
    assert last.sample is not None
    assert last.sample.call is not None
    call = replace(last.sample.call, t_next=torch.zeros(2, dtype=torch.float64))
    ended = replace(last, sample=replace(last.sample, call=call))
    assert "gap_rms" in method.student_loss(ended)[1]


def test_preferences_move_a_student_towards_the_reward_and_beta_holds_it_back() -> None:
    """A shift of the student's mean, over 40 updates."""
    ends = []
    for beta in (0.3, 3.0):
        method, shift = preference(beta=beta, ratio=1000), torch.zeros((), dtype=torch.float64)
        shift.requires_grad_()
        optimiser = torch.optim.SGD([shift], lr=0.3 / beta)
        for update in range(40):
            turn = turn_of(torch.zeros(8, 2, dtype=torch.float64), *[0.8] * 8, target=CRITIC)
            assert turn.sample is not None
            assert turn.sample.call is not None
            x0 = CRITIC(turn.sample.call.x_t, turn.sample.call.t, None) + shift
            generator = torch.Generator().manual_seed(update)
            turn = replace(turn, sample=replace(turn.sample, x=x0), generator=generator, update=update)
            optimiser.zero_grad()
            method.student_loss(turn)[0].backward()
            optimiser.step()
        ends.append(shift.item())
    assert ends[0] > ends[1] > 0.3


def test_the_layout_does_not_change_preferences(layouts_agree: Callable[..., None]) -> None:
    def loss(turn: Turn) -> Tensor:
        assert turn.sample is not None
        layout = turn.sample.layout

        class ByLayout:
            def score(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
                return layout.mean(x_t)

        return FlashDMDPreference(flash(), ByLayout(), candidates=2).student_loss(turn)[0]

    layouts_agree(loss, teacher=TEACHER, critic=CRITIC, target=TEACHER, decode=decode)


def test_the_preference_trains_stage_1s_critic_and_pulls_it(
    learnt_gaussian: Callable[..., Any],
) -> None:
    x = torch.randn(SHAPE, dtype=torch.float64)
    method = preference()
    ours, stage1 = method.critic_loss(turn_of(x, 0.3, 0.3)), method.stage1.critic_loss(turn_of(x, 0.3, 0.3))
    assert torch.equal(ours[0], stage1[0])
    student, critic = learnt_gaussian(1.0, 1.0), learnt_gaussian(0.0, 1.0)
    method.after_student_step(student, critic)
    assert critic.get_parameter("mean").item() == pytest.approx(0.03)
    assert method.needs == method.stage1.needs | {"target"}


@pytest.mark.parametrize("bad", [{"candidates": 1}, {"beta": 0.0}, {"ratio": 0}])
def test_impossible_preferences_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        preference(**bad)


def test_weights_of_frames_reach_the_preference() -> None:
    """They multiply the gradient; which draw is better does not depend on them."""
    x = torch.randn(2, 4, dtype=torch.float64)
    weight = torch.tensor([[0.0, 1.0, 0.25, 1.0], [1.0, 0.0, 0.0, 0.5]], dtype=torch.float64)
    turn = turn_of(x, 0.6, 0.8, target=TEACHER)
    assert turn.sample is not None
    windowed = gradient(preference(), replace(turn, sample=replace(turn.sample, weight=weight)))
    whole = gradient(preference(), turn_of(x, 0.6, 0.8, target=TEACHER))
    assert whole.abs().min() > 0
    torch.testing.assert_close(windowed, weight * whole)
