"""Two processes train as one does: DDP and FSDP2 by Lightning's strategies, over gloo."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fewstep.core.denoisers import Condition, Denoiser, NetworkDenoiser
from fewstep.core.layouts import Layout
from fewstep.core.objectives.contract import Data, Diagnostics, Need, Objective, Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.schedules import TimeSampler
from fewstep.core.training import distiller as distiller_module
from fewstep.core.training.distiller import Distiller
from fewstep.core.training.gradients import average_gradients
from fewstep.core.training.roles import Roles
from fewstep.core.training.run_folder import read_metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


class Net(nn.Module):
    """Two residual blocks over (x, t)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(2, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.last = nn.Linear(4, 1)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        x = self.first(torch.cat([x_t, t.to(x_t)[:, None]], dim=1))
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.last(x)


class ThroughTheCritic(DMD):
    """Differentiates through teacher and critic, as SiD does, and keeps a running average of the student."""

    @property
    def needs(self) -> frozenset[Need]:
        more: frozenset[Need] = frozenset({"target"})
        return super().needs | more

    def student_loss(self, turn: Turn) -> tuple[Tensor, Diagnostics]:
        assert turn.sample is not None
        assert turn.target is not None
        x, t = turn.sample.x, torch.full((len(turn.sample.x),), 0.5)
        gap = self._seen(turn.critic, x, t) - self._seen(turn.teacher, x, t)
        return gap.square().mean() + (x - turn.target(x.detach(), t, None)).square().mean(), {}

    def _seen(self, denoiser: Denoiser | None, x: Tensor, t: Tensor) -> Tensor:
        assert denoiser is not None
        return denoiser(0.5 * x, t, None)


class NetRoles(Roles):
    """Samples that follow from the batch's numbers, whatever process they are made in."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher, self.critic = (NetworkDenoiser(Net(seed)) for seed in range(3))
        self.noises: list[list[float]] = []
        self.drawn: list[int] = []

    def generate(self, batch: object, *, generator: torch.Generator, with_grad: bool) -> Sample:
        assert isinstance(batch, Tensor)
        self.noises.append(torch.randn(2, generator=generator).tolist())
        self.drawn.append(self.choose(1000, generator))
        x = self.student(torch.sin(7.1 * batch), torch.ones(len(batch)), None)
        return Sample(x=x, condition=batch)


@dataclass(frozen=True, kw_only=True)
class NumberedTurn(Turn):
    """Times and noise of each sample from its number."""

    def times(self, sampler: TimeSampler, x: Tensor, layout: Layout) -> Tensor:
        return 0.5 + 0.4 * torch.sin(3.3 * self._numbers)[:, 0]

    def noise_like(self, x: Tensor) -> Tensor:
        return 1.4 * torch.sin(5.7 * self._numbers + 1)

    @property
    def _numbers(self) -> Tensor:
        assert self.sample is not None
        assert isinstance(self.sample.condition, Tensor)
        return self.sample.condition


def numbered(distiller: type[Distiller]) -> type[Distiller]:
    class Numbered(distiller):
        def _turn(self, sample: Sample | None, data: Data | None, generator: torch.Generator) -> Turn:
            turn = super()._turn(sample, data, generator)
            return NumberedTurn(**{field.name: getattr(turn, field.name) for field in fields(turn)})

    return Numbered


def ddp() -> Strategy:
    return DDPStrategy(process_group_backend="gloo")


def fsdp2() -> Strategy:
    return ModelParallelStrategy(
        data_parallel_size=2,
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,
        process_group_backend="gloo",
    )


STRATEGIES = {"ddp": ddp, "fsdp2": fsdp2}


@pytest.fixture
def train(make_distiller: Callable, fit: Callable, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Trains alone (strategy None) or as one of two processes; the whole weights at the end, and more."""

    def train(
        rank: int,
        strategy: str | None,
        folder: str,
        objective: Objective | None = None,
        steps: tuple[int, ...] = (6,),
        keyed: bool = True,
        precision: Any = "32-true",
        **settings: object,
    ) -> dict[str, Any]:
        module = None
        for part in steps:
            torch.manual_seed(17 + rank)
            module = make_distiller(
                NetRoles(),
                objective or DMD(),
                **{"critic_updates": 2, "accumulate_batches": 2, "grad_clip": 0.1, **settings},
            )
            if keyed:
                module.__class__ = numbered(type(module))
            module.batch_size = 8 if strategy is None else 4
            parallel = {} if strategy is None else {"devices": 2, "strategy": STRATEGIES[strategy]()}
            trainer: Trainer = fit(module, part, tmp_path / folder, precision=precision, **parallel)
            assert trainer.world_size == (1 if strategy is None else 2)
        assert module is not None
        return {
            "weights": {name: whole(p) for name, p in module.roles.named_parameters()},
            "average": {name: whole(p) for name, p in module.ema.averaged_state().items()},
            "target": {
                f"target.{name}": whole(p)
                for name, p in (
                    {} if module.target is None else dict(module.target.named_parameters())
                ).items()
            },
            "kinds": {type(p) for p in module.parameters()},
            "noises": module.roles.noises,
            "drawn": module.roles.drawn,
        }

    return train


def whole(x: Tensor) -> Tensor:
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach().clone()


@pytest.mark.parametrize(
    ("strategy", "objective"),
    [
        pytest.param("ddp", DMD(), id="ddp, DMD"),
        pytest.param("ddp", ThroughTheCritic(), id="ddp, through the critic", marks=pytest.mark.slow),
        pytest.param("fsdp2", DMD(), id="fsdp2, DMD", marks=pytest.mark.slow),
        pytest.param("fsdp2", ThroughTheCritic(), id="fsdp2, through the critic"),
    ],
)
def test_two_processes_equal_one_with_the_doubled_batch(
    strategy: str, objective: Objective, train: Callable, in_two_processes: Callable
) -> None:
    one = train(0, None, "one", objective)
    first, second = in_two_processes(train, strategy, "two", objective)
    assert (DTensor in first["kinds"]) == (strategy == "fsdp2")
    start = dict(NetRoles().named_parameters())
    for name, expected in one["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], expected, atol=1e-5, rtol=1e-4)  # float32 sums
        assert torch.equal(start[name], expected) == name.startswith("teacher"), name
    for name, expected in (one["average"] | one["target"]).items():
        found = (first["average"] | first["target"])[name]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("role", ["student", "critic"])
def test_a_role_whose_gradients_are_not_averaged_drifts_apart(
    role: str, train: Callable, in_two_processes: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: both roles' gradients are averaged, and by nobody else."""
    clip = Distiller._clip

    def clip_alone(self: Distiller, parameters: list[nn.Parameter], clipped: str) -> Tensor:
        alone = (lambda _: None) if clipped == role else average_gradients
        with monkeypatch.context() as patch:
            patch.setattr(distiller_module, "average_gradients", alone)
            return clip(self, parameters, clipped)

    monkeypatch.setattr(Distiller, "_clip", clip_alone)
    first, second = (result["weights"] for result in in_two_processes(train, "ddp", "two"))
    assert role in {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])}


def test_processes_draw_their_own_noise_and_make_the_same_choices(
    train: Callable, in_two_processes: Callable
) -> None:
    first, second = in_two_processes(train, "ddp", "two")
    assert first["drawn"] == second["drawn"]
    assert len(set(first["drawn"])) > 6
    noises = first["noises"] + second["noises"]
    assert len({tuple(noise) for noise in noises}) == len(noises) == 24


@pytest.mark.parametrize(
    ("strategy", "precision"),
    [
        ("ddp", "32-true"),
        pytest.param("ddp", "bf16-mixed", marks=pytest.mark.slow),
        pytest.param("fsdp2", "32-true", marks=pytest.mark.slow),
        pytest.param("fsdp2", "bf16-mixed", marks=pytest.mark.slow),
    ],
)
def test_two_processes_resume_bit_for_bit(
    strategy: str, precision: str, train: Callable, in_two_processes: Callable, tmp_path: Path
) -> None:
    run = partial(train, objective=ThroughTheCritic(), keyed=False, precision=precision)
    whole_run, _ = in_two_processes(run, strategy, "whole")
    resumed, other = in_two_processes(partial(run, steps=(3, 6)), strategy, "parts")
    for part in ("weights", "average", "target"):
        for name, expected in whole_run[part].items():
            assert torch.equal(resumed[part][name], expected), name
            assert torch.equal(other[part][name], expected), name
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    saved = torch.load(tmp_path / "parts" / "last.ckpt")
    assert not any(name.startswith("roles.teacher") for name in saved["state_dict"])
    assert all(p.dtype == torch.float32 for p in resumed["weights"].values())


@pytest.mark.slow
def test_a_run_begun_in_two_sharded_processes_ends_in_one(
    train: Callable, in_two_processes: Callable, tmp_path: Path
) -> None:
    expected = train(0, None, "one")["weights"]
    in_two_processes(partial(train, steps=(4,)), "fsdp2", "moved")
    found = train(0, None, "moved")["weights"]
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=1e-4)
