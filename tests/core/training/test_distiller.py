from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.objectives.contract import Need, Objective, Turn
from fewstep.core.training.run_folder import read_metrics

TEACHER_MEAN, TEACHER_STD = 1.3, 0.7

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


def error_of(student: nn.Module) -> float:
    mean, std = student.get_parameter("mean").item(), abs(student.get_parameter("std").item())
    return max(abs(mean - TEACHER_MEAN), abs(std - TEACHER_STD))


def settings_of_recovery(**overrides: object) -> dict[str, object]:
    return {
        "student_lr": 3e-2,
        "critic_lr": 6e-2,
        "critic_updates": 1,
        "weight_decay": 0.0,
        "decay_to": 0.02,
        "ema_decay": 0.9,
        **overrides,
    }


def test_the_student_learns_the_teachers_mean_and_spread(make_distiller: Callable, fit: Callable) -> None:
    distiller = make_distiller(**settings_of_recovery())
    distiller.batch_size = 256
    fit(distiller, 300)
    assert error_of(distiller.roles.student) < 0.05


def test_without_critic_updates_the_student_misses_the_teacher(
    make_distiller: Callable, fit: Callable
) -> None:
    distiller = make_distiller(**settings_of_recovery(critic_updates=0))
    distiller.batch_size = 256
    fit(distiller, 300)
    assert error_of(distiller.roles.student) > 0.2


@pytest.mark.parametrize("first", [4, 5, 6])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    first: int,
    make_distiller: Callable,
    fit: Callable,
    tmp_path: Path,
    roles_with_dropout: Callable,
    assert_identical: Callable,
) -> None:
    whole = make_distiller(roles_with_dropout())
    fit(whole, 12, tmp_path / "whole")
    fit(make_distiller(roles_with_dropout()), first, tmp_path / "halves")
    torch.manual_seed(99)
    resumed = make_distiller(roles_with_dropout())
    fit(resumed, 12, tmp_path / "halves")

    expected, found = (torch.load(tmp_path / run / "last.ckpt") for run in ("whole", "halves"))
    assert expected["global_step"] == found["global_step"] == 12
    assert_identical(expected["state_dict"], found["state_dict"])
    assert_identical(expected["optimizer_states"], found["optimizer_states"])
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "halves")


def test_changed_settings_of_the_optimizers_hold_for_a_run_that_goes_on(
    make_distiller: Callable, fit: Callable, tmp_path: Path, roles_with_dropout: Callable
) -> None:
    fit(make_distiller(roles_with_dropout()), 2, tmp_path)
    changed = make_distiller(roles_with_dropout(), betas=(0.5, 0.9), weight_decay=0.25)
    fit(changed, 4, tmp_path)
    groups = [group for optimizer in changed.trainer.optimizers for group in optimizer.param_groups]
    assert [(group["betas"], group["weight_decay"]) for group in groups] == 2 * [((0.5, 0.9), 0.25)]


def test_a_run_with_another_seed_differs(make_distiller: Callable, fit: Callable, tmp_path: Path) -> None:
    runs = [make_distiller(seed=seed) for seed in (0, 1)]
    for seed, run in enumerate(runs):
        fit(run, 6, tmp_path / str(seed))
    assert not torch.equal(runs[0].roles.student.mean, runs[1].roles.student.mean)


def test_updates_are_counted_once_and_the_student_closes_each_cycle(
    make_distiller: Callable, fit: Callable
) -> None:
    distiller = make_distiller(critic_updates=3, critic_warmup=2)
    trainer = fit(distiller, 11)
    assert trainer.global_step == 11
    assert distiller.roles.rollouts == [u in (4, 7, 10) for u in range(11)]
    assert int(distiller.student_steps) == int(distiller.ema.num_updates) == 3


def test_a_second_rollout_is_made_only_when_asked(make_distiller: Callable, fit: Callable) -> None:
    distiller = make_distiller(critic_updates=2, reuse_rollout=False)
    fit(distiller, 4)
    assert distiller.roles.rollouts == [False, True, False, False, True, False]


def test_the_teacher_neither_trains_nor_is_saved(
    make_distiller: Callable, fit: Callable, tmp_path: Path, assert_identical: Callable
) -> None:
    distiller = make_distiller()
    before = {name: value.clone() for name, value in distiller.roles.teacher.state_dict().items()}
    fit(distiller, 6)
    assert_identical(before, dict(distiller.roles.teacher.state_dict()))
    assert not distiller.roles.teacher.training
    assert all(p.grad is None for p in distiller.roles.teacher.parameters())
    saved = torch.load(tmp_path / "last.ckpt")["state_dict"]
    assert {name.split(".")[1] for name in saved if name.startswith("roles.")} == {"student", "critic"}


class ThroughTheCritic(Objective):
    """An objective that differentiates through the critic, as SiD does."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"critic", "sample"})

    def student_loss(self, turn: Turn) -> tuple[Tensor, dict[str, Tensor]]:
        assert score(turn).requires_grad
        assert isinstance(turn.critic, nn.Module)
        assert not any(p.requires_grad for p in turn.critic.parameters())
        return score(turn).mean(), {}

    def critic_loss(self, turn: Turn) -> tuple[Tensor, dict[str, Tensor]]:
        assert turn.sample is not None
        assert not turn.sample.x.requires_grad
        return 0.0 * score(turn).mean(), {}


def score(turn: Turn) -> Tensor:
    assert turn.sample is not None
    assert turn.critic is not None
    return turn.critic(turn.sample.x, torch.full((len(turn.sample.x),), 0.5), None)


def test_the_students_gradient_stays_out_of_the_critic(
    make_distiller: Callable, fit: Callable, assert_identical: Callable
) -> None:
    distiller = make_distiller(objective=ThroughTheCritic(), critic_updates=1, weight_decay=0.0)
    before = {name: value.clone() for name, value in distiller.roles.critic.state_dict().items()}
    start = distiller.roles.student.mean.item()
    fit(distiller, 3)
    assert_identical(before, dict(distiller.roles.critic.state_dict()))
    assert distiller.roles.student.mean.item() < start


class Overflowing(ThroughTheCritic):
    def critic_loss(self, turn: Turn) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.inf * score(turn).mean(), {}


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_update(
    make_distiller: Callable, fit: Callable
) -> None:
    with pytest.raises(FloatingPointError, match=r"loss/critic is -?inf at update 0; lower critic_lr"):
        fit(make_distiller(objective=Overflowing()), 3)


class ByTheBatch(ThroughTheCritic):
    """The gradient of the student's mean is the mean of the batch."""

    def student_loss(self, turn: Turn) -> tuple[Tensor, dict[str, Tensor]]:
        assert turn.sample is not None
        assert isinstance(turn.sample.condition, Tensor)
        return (turn.sample.x * turn.sample.condition).mean(), {}


def test_accumulated_batches_equal_one_large_batch(
    make_distiller: Callable, fit: Callable, tmp_path: Path
) -> None:
    shared = {"objective": ByTheBatch(), "critic_updates": 0, "grad_clip": 1e6}
    split = make_distiller(accumulate_batches=4, **shared)
    whole = make_distiller(**shared)
    whole.batch_size = 32
    assert fit(split, 3, tmp_path / "split").global_step == 3
    fit(whole, 3, tmp_path / "whole")
    assert int(split.batches) == 12
    torch.testing.assert_close(split.roles.student.mean, whole.roles.student.mean, rtol=1e-6, atol=1e-7)
    assert [row["step"] for row in read_metrics(tmp_path / "split")] == [1, 2, 3]


def test_validation_sees_the_averaged_student(make_distiller: Callable, fit: Callable) -> None:
    distiller = make_distiller(ema_decay=0.9)
    fit(distiller, 9)
    average = distiller.ema.averaged_state()["mean"]
    assert not torch.equal(average, distiller.roles.student.mean)
    logged: dict[str, Tensor] = {}
    distiller.log_dict = lambda metrics, **_: logged.update(metrics)
    distiller.validation_step(torch.zeros(2, 1), 0)
    assert torch.equal(logged["val/mean"], average)


def test_shared_weights_and_missing_roles_are_refused(
    make_distiller: Callable, roles_with_dropout: Callable
) -> None:
    roles = roles_with_dropout()
    roles.student = roles.critic
    with pytest.raises(ValueError, match="2 are shared"):
        make_distiller(roles)
    with pytest.raises(ValueError, match="critic_updates=-1"):
        make_distiller(critic_updates=-1)
