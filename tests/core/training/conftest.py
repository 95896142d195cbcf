"""The smallest distillation with real classes: one-dimensional Gaussians, whose denoisers are known."""

from collections.abc import Callable, Sequence
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fewstep.core.denoisers import Condition, NetworkDenoiser
from fewstep.core.objectives.contract import Data, Sample
from fewstep.core.objectives.dmd import DMD
from fewstep.core.training.batches import StepKeyedBatches
from fewstep.core.training.distiller import Distiller
from fewstep.core.training.randomness import SeedEveryBatch
from fewstep.core.training.roles import Roles
from fewstep.core.training.run_folder import JsonLines, SaveLast

TEACHER_MEAN, TEACHER_STD = 1.3, 0.7


class GaussianPosterior(nn.Module):
    """E[x0 | x_t] of data N(mean, std^2) on the linear path, with learnable mean and std."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.std = nn.Parameter(torch.tensor(std))

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        t = t.reshape(-1, *[1] * (x_t.ndim - 1))
        variance = (1 - t) ** 2 * self.std**2 + t**2
        return self.mean + (1 - t) * self.std**2 / variance * (x_t - (1 - t) * self.mean)


class Affine(nn.Module):
    """A one-step student of one-dimensional noise: mean + std * eps."""

    def __init__(self, mean: float, std: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.std = nn.Parameter(torch.tensor(std))
        self.dropout = nn.Dropout(dropout)

    def forward(self, eps: Tensor) -> Tensor:
        return self.mean + self.dropout(self.std * eps)


class GaussianRoles(Roles):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.student = Affine(0.4, 1.1, dropout)
        self.teacher = NetworkDenoiser(GaussianPosterior(TEACHER_MEAN, TEACHER_STD), prediction="x0")
        self.critic = NetworkDenoiser(GaussianPosterior(0.4, 1.1), prediction="x0")
        self.rollouts: list[bool] = []

    def generate(self, batch: object, *, generator: torch.Generator, with_grad: bool) -> Sample:
        assert isinstance(batch, Tensor)
        self.rollouts.append(with_grad)
        eps = torch.randn(len(batch), 1, generator=generator)
        return Sample(x=self.student(eps), condition=batch, diagnostics={"eps": eps.mean()})

    def validate(self, batch: object, *, generator: torch.Generator) -> dict[str, Tensor]:
        return {"mean": self.student.get_parameter("mean").detach()}


class DataRoles(Roles):
    """A denoising student, and real samples that follow from the batch's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.student = NetworkDenoiser(GaussianPosterior(0.4, 1.1), prediction="x0")
        self.teacher = NetworkDenoiser(GaussianPosterior(TEACHER_MEAN, TEACHER_STD), prediction="x0")
        self.critic = NetworkDenoiser(GaussianPosterior(0.4, 1.1), prediction="x0")

    def generate(self, batch: object, *, generator: torch.Generator, with_grad: bool) -> Sample:
        assert isinstance(batch, Tensor)
        noise = torch.randn(len(batch), 1, generator=generator)
        return Sample(x=self.student(noise, torch.ones(len(batch)), None), condition=batch)

    def data(self, batch: object) -> Data:
        assert isinstance(batch, Tensor)
        return Data(x0=TEACHER_MEAN + TEACHER_STD * torch.sin(3 * batch), condition=batch)


class Numbers(Dataset[Tensor]):
    """Sample i is the number i."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index)])

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return list(torch.tensor(indices, dtype=torch.float32)[:, None])


class NumberedModule(Distiller):
    """A distiller that brings its own data, as a data module would."""

    batch_size = 8

    def train_dataloader(self) -> DataLoader[Tensor]:
        batches = StepKeyedBatches.of_trainer(64, self.batch_size, self._trainer)
        return DataLoader(Numbers(), batch_sampler=batches)


@pytest.fixture
def make_distiller() -> Callable[..., NumberedModule]:
    def make(roles: Roles | None = None, objective: object = None, **settings: object) -> NumberedModule:
        settings = {"student_lr": 1e-2, "critic_lr": 1e-2, "critic_updates": 3, **settings}
        return NumberedModule(roles or GaussianRoles(), objective or DMD(), **settings)  # pyright: ignore[reportArgumentType]

    return make


@pytest.fixture
def roles_with_dropout() -> Callable[[], GaussianRoles]:
    """Roles whose student also draws from the global generator."""
    return lambda: GaussianRoles(dropout=0.2)


def assert_same(expected: object, found: object) -> None:
    """Equality bit for bit through dicts, lists and tensors."""
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert list(expected) == list(found)
        for name, value in expected.items():
            assert_same(value, found[name])
    elif isinstance(expected, list):
        assert isinstance(found, list)
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            assert_same(one, other)
    elif isinstance(expected, Tensor):
        assert isinstance(found, Tensor)
        assert torch.equal(expected, found)
    else:
        assert expected == found


@pytest.fixture
def assert_identical() -> Callable[[object, object], None]:
    return assert_same


@pytest.fixture
def data_roles() -> Callable[[], DataRoles]:
    """Roles that give everything but pixels."""
    return DataRoles


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Trainer]:
    def fit(
        module: LightningModule,
        steps: int,
        folder: Path = tmp_path,
        extra_callbacks: Sequence[Callback] = (),
        **settings: Any,
    ) -> Trainer:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            default_root_dir=folder,
            logger=JsonLines(folder),
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[SaveLast(), SeedEveryBatch(), *extra_callbacks],
            **settings,
        )
        last = folder / "last.ckpt"
        trainer.fit(module, ckpt_path=last if last.is_file() else None, weights_only=True)
        return trainer

    return fit


@pytest.fixture(scope="session")
def in_two_processes() -> Callable[..., list[object]]:
    """``in_two_processes(run, *arguments)`` calls ``run(rank, *arguments)`` in two forked processes."""
    return run_path(str(Path(__file__).with_name("processes.py")))["in_two_processes"]
