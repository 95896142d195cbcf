"""What objectives of every kind may count on: who is called, who trains when, and what a resume keeps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.training.roles import Roles
from fewstep.core.training.run_folder import read_metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
]


def noised(turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
    assert turn.data is not None
    x0 = turn.data.x0
    t = turn.uniform(len(x0), x0.device)
    return x0, x0 + t[:, None] * (turn.noise_like(x0) - x0), t


class OnData(Objective):
    """Denoising of real samples: a student alone."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"student", "data"})

    def student_loss(self, turn: Turn) -> tuple[Tensor, Diagnostics]:
        assert turn.student is not None
        assert (turn.teacher, turn.critic, turn.target, turn.sample) == (None, None, None, None)
        x0, x_t, t = noised(turn)
        return (turn.student(x_t, t, None) - x0).square().mean(), {"update": torch.tensor(float(turn.update))}


class TowardsTarget(OnData):
    """Consistency with a running average of the student."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"student", "data", "target"})

    def student_loss(self, turn: Turn) -> tuple[Tensor, Diagnostics]:
        assert turn.student is not None
        assert turn.target is not None
        x0, x_t, t = noised(turn)
        own = turn.student(x_t, t, None)
        goal = turn.target(x0 + 0.5 * (x_t - x0), 0.5 * t, None)
        return (own - goal.detach()).square().mean() + (own - x0).square().mean(), {}


class Adversarial(nn.Module, Objective):
    """A discriminator of one parameter beside, or instead of, a critic; it counts in a buffer."""

    seen: Tensor

    def __init__(self, *needs: Need) -> None:
        super().__init__()
        self.named = needs
        self.slope = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("seen", torch.zeros(()))
        self.left_over: list[bool] = []

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"sample", "data", *self.named})

    def student_loss(self, turn: Turn) -> tuple[Tensor, Diagnostics]:
        assert turn.sample is not None
        assert not self.slope.requires_grad
        return -(self.slope * turn.sample.x).mean(), {}

    def critic_loss(self, turn: Turn) -> tuple[Tensor, Diagnostics]:
        assert turn.sample is not None
        assert turn.data is not None
        assert self.slope.requires_grad
        self.seen += 1
        self.left_over.append(self.slope.grad is not None)
        noise = turn.noise_like(turn.sample.x)
        difference = self.slope * (turn.sample.x - turn.data.x0 + 0.1 * noise)
        critic = 0.0 if turn.critic is None else turn.critic(noise, torch.full((len(noise),), 0.5), None)
        return (difference + critic).square().mean(), {}


class MovedCritic(DMD):
    """After its step the student drags the critic along."""

    def after_student_step(self, student: nn.Module, critic: nn.Module | None) -> None:
        assert critic is not None
        with torch.no_grad():
            critic.get_parameter("network.mean").lerp_(student.get_parameter("network.mean"), 0.5)


def test_without_a_critic_the_student_steps_at_every_update(
    make_distiller: Callable, fit: Callable, data_roles: Callable, tmp_path: Path
) -> None:
    distiller = make_distiller(data_roles(), OnData(), critic_updates=5)
    fit(distiller, 7)
    assert int(distiller.student_steps) == int(distiller.ema.num_updates) == 7
    rows = read_metrics(tmp_path)
    assert [row["diag/update"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert len({row["loss/student"] for row in rows}) == 7
    assert not any("loss/critic" in row for row in rows)


def test_networks_that_the_objective_does_not_name_are_dropped(
    make_distiller: Callable, fit: Callable, data_roles: Callable, tmp_path: Path
) -> None:
    distiller = make_distiller(data_roles(), OnData())
    assert (distiller.roles.teacher, distiller.roles.critic) == (None, None)
    fit(distiller, 1)
    saved = torch.load(tmp_path / "last.ckpt")
    assert {name.split(".")[1] for name in saved["state_dict"] if name.startswith("roles.")} == {"student"}
    assert len(saved["optimizer_states"]) == 1


def test_the_target_moves_by_its_decay_and_is_saved(
    make_distiller: Callable, fit: Callable, data_roles: Callable, tmp_path: Path
) -> None:
    distiller = make_distiller(data_roles(), TowardsTarget(), target_decay=0.75, student_lr=0.1)
    fit(distiller, 1, tmp_path / "one")
    start, after_one = 0.4, distiller.roles.student.network.mean.item()
    expected = 0.75 * start + 0.25 * after_one
    assert distiller.target.network.mean.item() == pytest.approx(expected, abs=1e-6)
    fit(distiller, 3, tmp_path / "three")
    saved = torch.load(tmp_path / "three" / "last.ckpt")["state_dict"]
    assert torch.equal(saved["target.network.mean"], distiller.target.network.mean)
    assert not torch.equal(saved["target.network.mean"], saved["roles.student.network.mean"])
    assert not any(p.requires_grad or p.grad is not None for p in distiller.target.parameters())
    assert not distiller.target.training


@pytest.mark.parametrize("needs", [(), ("critic",)])
def test_a_discriminator_trains_on_the_critics_turn_alone(
    needs: tuple[Need, ...], make_distiller: Callable, fit: Callable, data_roles: Callable, tmp_path: Path
) -> None:
    objective = Adversarial(*needs)
    distiller = make_distiller(data_roles(), objective, critic_updates=3)
    assert (distiller.roles.critic is None) == (needs == ())
    fit(distiller, 6)
    assert objective.left_over == [False] * 6
    assert int(distiller.student_steps) == 2
    assert objective.slope.item() != 0.5
    saved = torch.load(tmp_path / "last.ckpt")
    assert torch.equal(saved["state_dict"]["objective.slope"], objective.slope)
    assert len(saved["optimizer_states"]) == 2


def test_the_objective_may_move_the_critic_after_the_students_step(
    make_distiller: Callable, fit: Callable, data_roles: Callable
) -> None:
    settings = {"critic_updates": 2, "critic_lr": 0.0, "weight_decay": 0.0, "student_lr": 0.1}
    distiller = make_distiller(data_roles(), MovedCritic(), **settings)
    fit(distiller, 2)
    student, critic = distiller.roles.student.network.mean, distiller.roles.critic.network.mean
    assert student.item() != pytest.approx(0.4)
    assert critic.item() == pytest.approx((0.4 + student.item()) / 2)


class StopAt(Callback):
    """Ends a run early, as a limit on time would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        trainer.should_stop = trainer.global_step >= self.step


class Bare(Roles):
    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(1, 1)


class Needing(OnData):
    def __init__(self, *needs: Need) -> None:
        self.named = needs

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(self.named)


@pytest.mark.parametrize(
    ("need", "message"),
    [
        ("teacher", "Needing needs a teacher, but Bare has none"),
        ("critic", "Needing needs a critic, but Bare has none"),
        ("sample", r"Needing needs sample, but Bare has no generate\(\); write it"),
        ("data", r"Needing needs data, but Bare has no data\(\); write it"),
        ("decode", r"Needing needs decode, but Bare has no decode\(\); write it"),
    ],
)
def test_a_need_that_the_roles_do_not_give_is_named_before_training(
    need: Need, message: str, make_distiller: Callable
) -> None:
    with pytest.raises(ValueError, match=message):
        make_distiller(Bare(), Needing(need))


def test_a_student_of_one_time_is_refused_where_two_are_needed(
    make_distiller: Callable, data_roles: Callable
) -> None:
    with pytest.raises(ValueError, match="takes two times"):
        make_distiller(data_roles(), Needing("two_times"))


def test_a_student_that_is_no_denoiser_is_refused_where_it_is_called(make_distiller: Callable) -> None:
    class Blind(Bare):
        def __init__(self) -> None:
            super().__init__()
            self.student = nn.ParameterList([nn.Parameter(torch.zeros(1))])

    make_distiller(Blind(), Needing())
    with pytest.raises(NotImplementedError, match=r"write Blind\.denoiser\(\)"):
        make_distiller(Blind(), Needing("student"))


KINDS: dict[str, tuple[Callable[[], Objective], dict[str, object]]] = {
    "critic": (DMD, {"critic_updates": 3, "critic_warmup": 1, "warmup": 3, "decay_to": 0.1}),
    "student alone": (OnData, {"ema_start": 2}),
    "target": (TowardsTarget, {"accumulate_batches": 3}),
    "discriminator": (Adversarial, {"critic_updates": 2, "accumulate_batches": 2}),
    "discriminator and critic": (lambda: Adversarial("critic"), {"reuse_rollout": False}),
    "moved critic": (MovedCritic, {"critic_updates": 2}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_of_any_kind_equals_an_uninterrupted_one_bit_for_bit(
    kind: str,
    make_distiller: Callable,
    fit: Callable,
    data_roles: Callable,
    tmp_path: Path,
    assert_identical: Callable,
) -> None:
    objective, settings = KINDS[kind]
    fit(make_distiller(data_roles(), objective(), **settings), 8, tmp_path / "whole")
    for steps in (3, 5, 8):
        torch.manual_seed(steps)
        distiller = make_distiller(data_roles(), objective(), **settings)
        fit(distiller, 8, tmp_path / "parts", extra_callbacks=[StopAt(steps)])
    expected, found = (torch.load(tmp_path / run / "last.ckpt") for run in ("whole", "parts"))
    assert expected["global_step"] == found["global_step"] == 8
    assert_identical(expected["state_dict"], found["state_dict"])
    assert_identical(expected["optimizer_states"], found["optimizer_states"])
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")
