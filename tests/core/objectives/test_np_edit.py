"""NP-Edit: a judge's cross entropy through the pixels, beside DMD and the identity term."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.layouts import DENSE
from fewstep.core.objectives.contract import Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.np_edit import NPEdit, answer_losses, identity_losses, judge_losses, two_calls
from fewstep.core.paths import LinearPath
from fewstep.core.rewards.contract import Reward
from fewstep.core.schedules import TimeSampler

TEACHER = GaussianDenoiser(mean=1.3, std=0.7)
CRITIC = GaussianDenoiser(mean=0.4, std=1.1)
PAPER_TIMES = (1.0, 0.9474, 0.8571, 0.6667)


@dataclass(frozen=True)
class Linear(Reward):
    """The log-odds of a sample are a fixed row times its values."""

    row: tuple[float, ...] = (1.0,)
    name: str = "linear"
    differentiable: bool = True

    def score(self, pixels: Tensor, condition: object = None) -> Tensor:
        return pixels.flatten(1) @ torch.tensor(self.row, dtype=pixels.dtype)


@dataclass(frozen=True)
class Exam(Reward):
    """Two questions about a pair of values, which are the logits of Yes and No; the second wants a No."""

    name: str = "exam"
    differentiable: bool = True

    def score(self, pixels: Tensor, condition: object = None) -> Tensor:
        raise AssertionError("a judge with answers is asked for them")

    def answers(self, pixels: Tensor, condition: object) -> list[tuple[Tensor, Tensor, Tensor]]:
        yes, no = pixels.unbind(1)
        good = torch.ones(len(pixels), dtype=torch.bool)
        return [(yes, no, good), (2 * yes, 0.5 * no, ~good)]


@dataclass(frozen=True)
class Edit:
    reference: Tensor
    unchanged: Tensor


def plain(judge: Reward | None = None, **settings: object) -> NPEdit:
    """Without the terms and the schedule that a test is not about."""
    defaults = {"judge_weight": 1.0, "dmd_weight": 0.0, "identity_weight": 0.0, "soft": 1.0}
    return NPEdit(judge=judge or Linear((1.0, 0.5)), **{**defaults, **settings})  # pyright: ignore[reportArgumentType]


def turn_of(x: Tensor, *, update: int = 0, **sample: object) -> Turn:
    return Turn(
        sample=Sample(x=x, **sample),  # pyright: ignore[reportArgumentType]
        teacher=TEACHER,
        critic=CRITIC,
        decode=lambda it: it,
        generator=torch.Generator().manual_seed(7),
        update=update,
    )


def gradient(objective: NPEdit | DMD, x: Tensor, **turn: object) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    loss, _ = objective.student_loss(turn_of(leaf, **turn))  # pyright: ignore[reportArgumentType]
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("question", [0, 1])
def test_gradient_in_the_logits_is_softmax_minus_target_times_temperature(
    temperature: float, question: int
) -> None:
    """T-NP-1."""
    logits = 3 * torch.randn(5, 2, dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    yes, no, good = Exam().answers(leaf, None)[question]
    loss = answer_losses((yes - no) * (1 if good.all() else -1), temperature).sum()
    (found,) = torch.autograd.grad(loss, leaf)
    scale = torch.tensor([[1.0, 1.0], [2.0, 0.5]], dtype=torch.float64)[question]
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)[question]
    expected = temperature * (torch.softmax(temperature * scale * logits, dim=1) - target) * scale
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_answers_of_a_judge_are_averaged_each_under_its_own_target() -> None:
    logits = torch.tensor([[1.0, -2.0], [0.3, 0.4]], dtype=torch.float64)
    found = judge_losses(Exam(), logits, None, 0.7)
    expected = []
    for yes, no in logits.tolist():
        first = -math.log(math.exp(0.7 * yes) / (math.exp(0.7 * yes) + math.exp(0.7 * no)))
        yes, no = 2 * yes, 0.5 * no
        second = -math.log(math.exp(0.7 * no) / (math.exp(0.7 * yes) + math.exp(0.7 * no)))
        expected.append((first + second) / 2)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_step_along_the_gradient_raises_the_chance_of_the_good_answer() -> None:
    """T-NP-2: a linear judge, DMD off."""
    x = torch.randn(6, 2, dtype=torch.float64)
    judge = Linear((1.0, -2.0))
    moved = x - 0.1 * gradient(plain(judge), x)
    before, after = (judge.score(values).sigmoid() for values in (x, moved))
    assert (after > before).all()


class Calls(nn.Module):
    """x0 = slope_k x_t + offset_k with parameters of its own for each of two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()
        self.slopes = nn.ParameterList([torch.tensor(0.6), torch.tensor(0.8)])
        self.times: list[float] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        self.times.append(float(t[0]))
        return self.slopes[len(self.times) - 1] * x_t


@pytest.mark.parametrize("unroll", [True, False], ids=["unrolled", "only the last call, as DMD2"])
def test_both_calls_of_the_unrolled_student_get_a_gradient(unroll: bool) -> None:
    """T-NP-3."""
    student, noise = Calls(), torch.randn(8, 2)
    x, _ = two_calls(PAPER_TIMES, 2).rollout_and_call(student, noise, None, unroll=unroll)
    NPEdit(judge=Linear((1.0, 0.5)), identity_weight=0.0).student_loss(turn_of(x))[0].backward()
    assert student.times == pytest.approx([1.0, 0.8571])
    reached = [slope.grad is not None and bool(slope.grad != 0) for slope in student.slopes]
    assert reached == [unroll, True]


@pytest.mark.parametrize(
    ("exit_step", "times"), [(0, (1.0,)), (1, (1.0, 0.9474)), (2, (1.0, 0.8571)), (3, (1.0, 0.6667))]
)
def test_training_calls_twice_at_the_most(exit_step: int, times: tuple[float, ...]) -> None:
    assert two_calls(PAPER_TIMES, exit_step).times == times


@pytest.mark.parametrize(("update", "temperature"), [(0, 0.1), (1000, 0.55), (2000, 1.0), (9000, 1.0)])
def test_the_temperature_rises_to_1(update: int, temperature: float) -> None:
    x = torch.randn(3, 2, dtype=torch.float64)
    objective = NPEdit(judge=Linear((1.0, 0.5)), identity_weight=0.0)
    found = objective.student_loss(turn_of(x, update=update))[1]["judge"]
    expected = (1 + torch.exp(-temperature * (x[:, 0] + 0.5 * x[:, 1]))).log().mean()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_the_terms_add_up_under_their_weights() -> None:
    x, reference = torch.randn(2, 4, 2, dtype=torch.float64)
    edit = Edit(reference, torch.tensor([True, False, False, True]))
    parts = [
        gradient(plain(judge_weight=0.0, dmd_weight=1.0), x),
        gradient(plain(judge_weight=1.0), x),
        gradient(plain(judge_weight=0.0, identity_weight=1.0), x, condition=edit),
    ]
    objective = plain(judge_weight=0.02, dmd_weight=0.5, identity_weight=2.0)
    whole = gradient(objective, x, condition=edit)
    torch.testing.assert_close(whole, 0.5 * parts[0] + 0.02 * parts[1] + 2 * parts[2], rtol=1e-9, atol=1e-12)


def test_without_judge_and_identity_it_is_dmd() -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(gradient(plain(judge_weight=0.0, dmd_weight=1.0), x), gradient(DMD(), x))


def test_only_samples_to_be_left_unchanged_are_pulled_to_their_reference() -> None:
    x, reference = torch.randn(2, 4, 2, dtype=torch.float64)
    unchanged = torch.tensor([True, False, False, True])
    found = gradient(plain(judge_weight=0.0, identity_weight=1.0), x, condition=Edit(reference, unchanged))
    expected = torch.where(unchanged[:, None], 2 * (x - reference) / 8, 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


def test_samples_in_half_precision_are_compared_with_their_reference_in_float32() -> None:
    """The square of 1.0078125 has more digits than bfloat16."""
    x, reference = torch.full((1, 2), 1.0078125).bfloat16(), torch.zeros(1, 2)
    losses = identity_losses(x, Edit(reference, torch.tensor([True])), DENSE)
    assert losses.dtype == torch.float32
    assert losses.item() == 1.0078125**2


def test_the_default_weights_are_those_of_the_released_configuration() -> None:
    objective = NPEdit(judge=Linear())
    weights = (objective.judge_weight, objective.dmd_weight, objective.identity_weight)
    assert weights == (0.02, 1.0, 1.0)


def test_a_condition_without_reference_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="identity_weight"):
        NPEdit(judge=Linear((1.0, 0.5))).student_loss(turn_of(torch.randn(2, 2)))


def test_a_judge_without_gradient_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="ReDMD"):
        NPEdit(judge=Linear(differentiable=False))


@pytest.mark.parametrize("settings", [{"soft": 0.0}, {"soft": 1.1}, {"soft_updates": 0}])
def test_a_temperature_that_does_not_rise_to_1_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="soft"):
        NPEdit(judge=Linear(), **settings)  # pyright: ignore[reportArgumentType]


def test_the_gradient_passes_the_decoder_and_stops_where_it_clamps() -> None:
    x = torch.tensor([[0.5, 0.5], [2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    turn = dataclasses.replace(turn_of(x), decode=lambda it: (3 * it - 1).clamp(-1, 1))
    loss, _ = plain(Linear((1.0, 1.0))).student_loss(turn)
    (found,) = torch.autograd.grad(loss, x)
    pixels = torch.tensor([[0.5, 0.5], [1.0, 0.5]], dtype=torch.float64)
    slopes = -3 * torch.sigmoid(-pixels.sum(1)) / 2
    torch.testing.assert_close(found, slopes[:, None] * torch.tensor([[1.0, 1.0], [0.0, 1.0]]))


def test_weights_of_the_sample_reach_every_term() -> None:
    x, reference = torch.randn(2, 2, 4, 1, dtype=torch.float64)
    weight = torch.tensor([[0.0, 0.0, 1.0, 2.0]], dtype=torch.float64).expand(2, 4)
    condition = Edit(reference, torch.tensor([True, True]))
    objective = plain(Linear((1.0, -0.5, 0.5, 2.0)), dmd_weight=1.0, identity_weight=1.0)
    weighted, whole = (gradient(objective, x, condition=condition, weight=w) for w in (weight, None))
    torch.testing.assert_close(weighted, weight[..., None] * whole, rtol=1e-12, atol=0)


def test_the_layout_makes_no_difference(layouts_agree: Callable[..., None]) -> None:
    objective = plain(Linear(), dmd_weight=1.0, identity_weight=1.0)

    def loss(turn: Turn) -> Tensor:
        assert turn.sample is not None
        assert turn.data is not None
        numbers = getattr(turn, "samples")  # noqa: B009 (of the fixture's turns)
        edit = Edit(turn.data.x0, numbers % 2 == 0)
        layout = turn.sample.layout
        sample = dataclasses.replace(turn.sample, condition=edit)
        judged = dataclasses.replace(turn, sample=sample, decode=lambda x: layout.mean(x)[:, None])
        return objective.student_loss(judged)[0]

    layouts_agree(loss, teacher=TEACHER, critic=CRITIC)


def test_the_critic_is_dmds(known_turn: Callable[..., Turn], fixed_times: Callable[..., TimeSampler]) -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    losses = [
        objective.critic_loss(known_turn(x, critic=CRITIC))[0]
        for objective in (NPEdit(judge=Linear((1.0, 0.5))), DMD())
    ]
    assert losses[0] == losses[1]


def test_it_asks_for_pixels() -> None:
    assert NPEdit(judge=Linear()).needs == {"teacher", "critic", "sample", "decode"}


def recovered(objective: NPEdit, steps: int = 100) -> tuple[float, float]:
    """Mean and width of a student mu + v z from (0.4, 1.1), each step against its exact critic."""
    mu, v = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.4, 1.1))
    optimiser = torch.optim.Adam([mu, v], lr=4e-2, betas=(0.0, 0.99))
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 4e-2 * (1 - step / steps)
        turn = Turn(
            sample=Sample(x=mu + v * torch.randn(256, 8, generator=generator, dtype=torch.float64)),
            teacher=TEACHER,
            critic=GaussianDenoiser(mean=mu.detach(), std=v.detach()),
            decode=lambda x: x,
            generator=generator,
        )
        optimiser.zero_grad()
        objective.student_loss(turn)[0].backward()
        optimiser.step()
    return mu.item(), abs(v.item())


@pytest.mark.parametrize(("row", "low", "high"), [(0.0, 1.29, 1.31), (0.2, 1.32, 1.6), (-0.2, 0.5, 1.28)])
def test_the_student_ends_on_the_judges_side_of_the_teacher(row: float, low: float, high: float) -> None:
    objective = plain(Linear((row,) * 8), dmd_weight=1.0, judge_weight=0.3)
    assert low < recovered(objective)[0] < high
