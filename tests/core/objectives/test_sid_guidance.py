"""Guidance of SiD: which network sees which condition, and how far it is moved."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import Denoiser, Guided
from fewstep.core.objectives.contract import Sample, Turn
from fewstep.core.objectives.flow_matching import FlowMatching
from fewstep.core.objectives.sid import SiD, SiDGuidance
from fewstep.core.paths import LinearPath
from fewstep.core.schedules import TimeSampler

TEACHER = GaussianDenoiser(mean=1.3, std=0.7)


class Shifted(nn.Module):
    """Answers 0.5 x_t + its condition, and keeps the conditions it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()
        self.factor = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.conditions: list[float] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        assert isinstance(condition, Tensor)
        self.conditions += sorted(set(condition.flatten().tolist()))
        return self.factor * x_t + condition


def guided_turn(teacher: Denoiser, critic: Denoiser, x: Tensor) -> Turn:
    condition = torch.full((len(x), 1), 2.0, dtype=torch.float64)
    null = torch.full((1, 1), -1.0, dtype=torch.float64)
    return Turn(sample=Sample(x=x, condition=condition), teacher=teacher, critic=critic, null_condition=null)


@pytest.mark.parametrize(
    ("guidance", "of_teacher", "of_critic"),
    [
        (SiDGuidance(), [2.0], [2.0]),
        (SiDGuidance.zero_cfg(), [2.0], [-1.0]),
        (SiDGuidance.anti_cfg(-1.0), [2.0], [-1.0, 2.0]),
        (SiDGuidance(teacher=4.5, critic=4.5), [-1.0, 2.0], [-1.0, 2.0]),
    ],
    ids=["none", "zero", "anti", "long and short"],
)
def test_which_conditions_the_networks_see(
    guidance: SiDGuidance, of_teacher: list[float], of_critic: list[float]
) -> None:
    teacher, critic = Shifted(), Shifted()
    turn = guided_turn(teacher, critic, torch.randn(3, 1, dtype=torch.float64))
    SiD(guidance=guidance).student_loss(turn)
    assert (teacher.conditions, critic.conditions) == (of_teacher, of_critic)


def test_guidance_moves_teacher_and_critic_apart_by_its_scales(
    fixed_times: Callable[..., TimeSampler],
) -> None:
    """Guided by w these denoisers answer 0.5 x_t - 1 + 3 w, so the gap is 3 (w_teacher - w_critic)."""
    turn = guided_turn(Shifted(), Shifted(), torch.randn(3, 1, dtype=torch.float64))
    objective = SiD(guidance=SiDGuidance(teacher=2.0, critic=-1.5), times=fixed_times(0.5))
    assert objective.student_loss(turn)[1]["gap_rms"].item() == pytest.approx(10.5)


def test_the_objectives_guidance_of_the_teacher_replaces_the_roles_and_none_keeps_it(
    fixed_times: Callable[..., TimeSampler],
) -> None:
    null = torch.full((1, 1), -1.0, dtype=torch.float64)
    guided = Guided(Shifted(), guidance_scale=4.0, null_condition=null)
    turn = guided_turn(guided, Shifted(), torch.randn(3, 1, dtype=torch.float64))
    kept, replaced = (
        SiD(guidance=SiDGuidance(teacher=teacher), times=fixed_times(0.5)).student_loss(turn)[1]
        for teacher in (None, 1.0)
    )
    assert kept["gap_rms"].item() == pytest.approx(9.0)
    assert replaced["gap_rms"].item() == 0


@pytest.mark.parametrize(
    ("guidance", "seen"),
    [
        (SiDGuidance(), [2.0]),
        (SiDGuidance.zero_cfg(), [-1.0]),
        (SiDGuidance(critic_training=1.5), [-1.0, 2.0]),
        (SiDGuidance(null_dropout=1.0), [-1.0]),
    ],
    ids=["none", "zero", "guided", "all dropped"],
)
def test_which_conditions_the_critic_learns(guidance: SiDGuidance, seen: list[float]) -> None:
    critic = Shifted()
    turn = guided_turn(TEACHER, critic, torch.randn(3, 1, dtype=torch.float64))
    SiD(guidance=guidance).critic_loss(turn)[0].backward()
    assert critic.conditions == seen
    assert critic.factor.grad is not None


def test_the_critic_is_regressed_as_it_is_guided(known_turn: Callable[..., Turn]) -> None:
    x = torch.randn(3, 1, dtype=torch.float64)
    regression, null = FlowMatching(), torch.full((1, 1), -1.0, dtype=torch.float64)
    condition = torch.full((3, 1), 2.0, dtype=torch.float64)
    sample = Sample(x=x, condition=condition)
    objective = SiD(guidance=SiDGuidance(critic_training=1.5), regression=regression)
    found, _ = objective.critic_loss(
        known_turn(x, sample=sample, critic=Shifted(), teacher=TEACHER, null_condition=null)
    )
    guided = Guided(Shifted(), guidance_scale=1.5, null_condition=null)
    expected, _ = regression.loss_in(known_turn(x, sample=sample), guided, x, condition=condition)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_prompts_are_dropped_at_the_stated_rate() -> None:
    critic = Shifted()
    turn = guided_turn(TEACHER, critic, torch.randn(1, 1, dtype=torch.float64))
    for _ in range(200):
        SiD(guidance=SiDGuidance(null_dropout=0.1)).critic_loss(turn)
    assert critic.conditions.count(-1.0) == pytest.approx(20, abs=17)  # four standard deviations


def test_a_scale_that_is_not_negative_is_not_anti_cfg() -> None:
    with pytest.raises(ValueError, match="negative"):
        SiDGuidance.anti_cfg(0.0)
