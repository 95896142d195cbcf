"""Every alarm is raised by a run that is really broken that way, and a good run raises none."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from fewstep.core.objectives.contract import Diagnostics, Objective, Turn
from fewstep.core.objectives.dmd import DMD, pseudo_target_loss
from fewstep.core.schedules import UniformTimes
from fewstep.core.training.clusters import ClusterData, ClusterRoles
from fewstep.core.training.distiller import Distiller
from fewstep.core.training.health import RULES, Health, Rule, Watch, read_alarms
from fewstep.core.training.run_folder import read_metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
]

GOOD: dict[str, Any] = {
    "student_lr": 1e-3,
    "critic_lr": 2e-3,
    "critic_updates": 3,
    "weight_decay": 0.0,
    "ema_decay": 0.95,
}


class ScoreDistillation(DMD):
    """Towards the teacher's guess and away from nothing: without its critic, DMD seeks the mode."""

    def student_loss(self, turn: Turn) -> tuple[Tensor, Diagnostics]:
        assert turn.sample is not None
        assert turn.teacher is not None
        x = turn.sample.x
        t, eps = turn.times(self.times, x, turn.sample.layout), turn.noise_like(x)
        with torch.no_grad():
            x0 = turn.teacher(x + t[:, None] * (eps - x), t, turn.sample.condition)
        return pseudo_target_loss(x, x.detach() - x0), {}


class Flipped(DMD):
    """Teacher and critic exchanged: the student flees from the teacher."""

    def student_loss(self, turn: Turn) -> tuple[Tensor, Diagnostics]:
        loss, diagnostics = super().student_loss(turn)
        return -loss, diagnostics


@pytest.fixture
def train(fit: Callable, tmp_path: Path) -> Callable[..., Path]:
    def train(
        steps: int, objective: Objective | None = None, guidance_scale: float = 1.0, **settings: Any
    ) -> Path:
        distiller = Distiller(
            ClusterRoles(guidance_scale=guidance_scale), objective or DMD(), **{**GOOD, **settings}
        )
        distiller.train_dataloader = lambda: cluster_loader(distiller)
        fit(distiller, steps, extra_callbacks=[Health(every_steps=10)])
        return tmp_path

    return train


def cluster_loader(distiller: Distiller) -> object:
    data = ClusterData(256)
    data.trainer = distiller.trainer
    return data.train_dataloader()


def raised(folder: Path) -> set[str]:
    return {alarm["name"] for alarm in read_alarms(folder)}


@pytest.mark.slow
def test_a_good_run_raises_no_alarm_once_it_is_under_way(train: Callable) -> None:
    folder = train(600)
    assert {alarm["name"] for alarm in read_alarms(folder)} == set()


BROKEN: dict[str, dict[str, Any]] = {
    "critic lags": {"critic_lr": 1e-6, "objective": Flipped()},
    "critic misleads": {"critic_updates": 1, "critic_lr": 0.3},
    "diverges": {"objective": Flipped(), "student_lr": 1e-2},
    "saturates": {"guidance_scale": 6.0, "student_lr": 3e-3},
    "collapses": {"objective": ScoreDistillation(), "student_lr": 3e-3, "critic_updates": 1},
    "misses modes": {"objective": ScoreDistillation(), "student_lr": 3e-3, "critic_updates": 1},
    "one time rules": {
        "objective": DMD(times=UniformTimes(low=1e-3, high=0.98), weighting="kl"),
    },
    "clipped": {"grad_clip": 1e-4, "critic_updates": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_run_broken_in_this_way_raises_this_alarm(
    name: str, train: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        folder = train(120, **BROKEN[name])
    assert name in raised(folder)
    alarm = next(alarm for alarm in read_alarms(folder) if alarm["name"] == name)
    assert any(alarm["message"] in message for message in caplog.messages)


def test_every_alarm_has_a_run_that_raises_it() -> None:
    assert {rule.name for rule in RULES} == set(BROKEN)


def test_an_alarm_needs_patience_to_begin_and_to_end() -> None:
    values = {rule.reads[0]: 0.0 for rule in RULES}
    watch = Watch(patience=3)
    seen = []
    for step, saturation in enumerate([0.2, 0.2, 0.0, 0.2, 0.2, 0.2, 0.0, 0.2, 0.0, 0.0, 0.0, 0.0]):
        raised = watch.see({"saturation": saturation}, step)
        seen.append([alarm["name"] for alarm in raised])
    assert [step for step, names in enumerate(seen) if names] == [5]
    assert [(alarm["since"], alarm["until"]) for alarm in watch.alarms] == [(5, 10)]
    assert "20% of the student's values lie beyond" in watch.alarms[0]["message"]
    assert (
        Watch(1).see(values | {"gap": 1.0, "critic_truth": 1.0, "coverage": 1.0, "diversity": 1.0}, 0) == []
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_messages_are_one_line_with_a_remedy(rule: Rule) -> None:
    message = rule.message(dict.fromkeys(rule.reads, 0.7))
    assert "\n" not in message
    assert any(word in message for word in ("raise", "lower", "change"))


def weights(distiller: Distiller) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in distiller.state_dict().items()}


def test_measuring_changes_nothing_of_the_run(
    make_distiller: Callable,
    fit: Callable,
    roles_with_dropout: Callable,
    tmp_path: Path,
    assert_identical: Callable,
) -> None:
    found = []
    for callbacks in ([], [Health(every_steps=2)]):
        distiller = make_distiller(roles_with_dropout(), accumulate_batches=2)
        distiller.batch_size = 32
        fit(distiller, 6, tmp_path / str(len(callbacks)), extra_callbacks=callbacks)
        found.append(weights(distiller))
    assert_identical(*found)
    rows = read_metrics(tmp_path / "1")
    assert [row["step"] for row in rows if "health/std_ratio" in row] == [2, 4, 6]
    assert [row["step"] for row in rows if "loss/critic" in row] == [1, 2, 3, 4, 5, 6]
    assert {"health/critic_truth", "health/gap", "health/coverage", "health/gradient_time_4"} <= set().union(
        *rows
    )


def test_health_resumes_where_it_stood(
    make_distiller: Callable, fit: Callable, roles_with_dropout: Callable, tmp_path: Path
) -> None:
    settings = {"grad_clip": 1e-4, "critic_updates": 1}
    health = {"every_steps": 2, "patience": 2}

    def run(steps: int, folder: str) -> Trainer:
        distiller = make_distiller(roles_with_dropout(), **settings)
        distiller.batch_size = 32
        return fit(distiller, steps, tmp_path / folder, extra_callbacks=[Health(**health)])

    run(8, "whole")
    run(3, "parts")
    run(8, "parts")
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    assert read_alarms(tmp_path / "parts") == read_alarms(tmp_path / "whole")
    assert "clipped" in raised(tmp_path / "whole")


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="samples=5 at least 32"):
        Health(samples=5)
    with pytest.raises(ValueError, match="every_steps=-1"):
        Health(every_steps=-1)
