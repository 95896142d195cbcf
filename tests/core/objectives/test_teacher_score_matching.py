"""Teacher score matching: the distance to the teacher, in any space, on data of any law."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.objectives.contract import Data, Sample, Turn
from fewstep.core.objectives.flow_matching import Space
from fewstep.core.objectives.multi_student import TeacherScoreMatching
from fewstep.core.paths import LinearPath, VPPath
from fewstep.core.schedules import TimeSampler

TEACHER = GaussianDenoiser(mean=1.3, std=0.7)


class Affine(nn.Module):
    """x0 = 0.5 x_t + 0.1."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return 0.5 * x_t + 0.1


@pytest.mark.parametrize(("space", "power"), [("x0", 0), ("velocity", 1), ("eps", 1)])
def test_the_loss_is_the_distance_to_the_teacher_in_its_space(
    space: Space, power: int, known_turn: Callable[..., Turn], fixed_times: Callable[..., TimeSampler]
) -> None:
    times, x0 = (0.2, 0.5, 0.8), torch.randn(3, 4, dtype=torch.float64)
    student = Affine()
    turn = known_turn(x0, student=student, teacher=TEACHER, data=Data(x0=x0))
    loss, diagnostics = TeacherScoreMatching(times=fixed_times(*times), space=space).student_loss(turn)
    probe = known_turn(x0)
    probe.times(fixed_times(*times), x0, Sample(x=x0).layout)
    eps = probe.noise_like(x0)
    errors, scaled = [], []
    for i, t in enumerate(times):
        x_t = (1 - t) * x0[i] + t * eps[i]
        answer = TEACHER(x_t[None], torch.tensor([t], dtype=torch.float64), None)[0]
        error = 0.5 * x_t + 0.1 - answer
        scale = {"x0": 1.0, "velocity": 1 / t, "eps": (1 - t) / t}[space]
        errors.append(error.square().mean().item())
        scaled.append(scale**2 * errors[-1])
    assert loss.item() == pytest.approx(sum(scaled) / 3, rel=1e-9)
    assert diagnostics["x0_error_rms"].item() == pytest.approx((sum(errors) / 3) ** 0.5, rel=1e-9)


def test_a_student_equal_to_the_teacher_loses_nothing(learnt_gaussian: Callable[..., Any]) -> None:
    turn = Turn(
        student=learnt_gaussian(mean=1.3, std=0.7),
        teacher=TEACHER,
        data=Data(x0=torch.randn(8, 3, dtype=torch.float64)),
    )
    assert TeacherScoreMatching().student_loss(turn)[0] == 0


def test_only_the_student_gets_a_gradient(learnt_gaussian: Callable[..., Any]) -> None:
    student, teacher = learnt_gaussian(), learnt_gaussian(mean=1.3, std=0.7)
    turn = Turn(student=student, teacher=teacher, data=Data(x0=torch.randn(8, 3, dtype=torch.float64)))
    TeacherScoreMatching().student_loss(turn)[0].backward()
    assert all(parameter.grad is not None and parameter.grad != 0 for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_student_becomes_the_teacher_on_data_of_another_law(
    learnt_gaussian: Callable[..., Any],
) -> None:
    student, generator = learnt_gaussian(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(student.parameters(), lr=5e-2)
    for _ in range(150):
        x0 = torch.randn(64, 2, generator=generator, dtype=torch.float64)
        turn = Turn(student=student, teacher=TEACHER, data=Data(x0=x0), generator=generator)
        optimiser.zero_grad()
        TeacherScoreMatching().student_loss(turn)[0].backward()
        optimiser.step()
    assert student.get_parameter("mean").item() == pytest.approx(1.3, abs=0.01)
    assert student.get_parameter("std").item() == pytest.approx(0.7, abs=0.01)


def test_the_layout_makes_no_difference_to_teacher_score_matching(
    layouts_agree: Callable[..., None], learnt_gaussian: Callable[..., Any]
) -> None:
    student = learnt_gaussian()
    layouts_agree(
        lambda turn: TeacherScoreMatching().student_loss(turn)[0],
        parameters=list(student.parameters()),
        student=student,
        teacher=TEACHER,
    )


def test_students_of_another_path_are_refused_with_the_remedy() -> None:
    turn = Turn(student=GaussianDenoiser(path=VPPath()), teacher=TEACHER, data=Data(x0=torch.randn(2, 3)))
    with pytest.raises(ValueError, match="OnPath"):
        TeacherScoreMatching().student_loss(turn)


def test_it_needs_a_teacher_and_data_and_no_critic() -> None:
    assert TeacherScoreMatching().needs == {"student", "teacher", "data"}
