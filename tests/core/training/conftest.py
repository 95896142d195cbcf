"""The smallest distillation with real classes: one-dimensional Gaussians, whose denoisers are known."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fewstep.core.denoisers import Condition, NetworkDenoiser
from fewstep.core.objectives.contract import Sample
from fewstep.core.objectives.dmd import DMD
from fewstep.core.training.batches import StepKeyedBatches, consumed_batches
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


class Numbers(Dataset[Tensor]):
    """Sample i is the number i."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index)])


class NumberedModule(Distiller):
    """A distiller that brings its own data, as a data module would."""

    batch_size = 8

    def train_dataloader(self) -> DataLoader[Tensor]:
        batches = StepKeyedBatches(64, self.batch_size, first_batch=consumed_batches(self._trainer))
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


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Trainer]:
    def fit(
        module: LightningModule, steps: int, folder: Path = tmp_path, extra_callbacks: Sequence[Callback] = ()
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
            callbacks=[SaveLast(), SeedEveryBatch(), *extra_callbacks],
        )
        last = folder / "last.ckpt"
        trainer.fit(module, ckpt_path=last if last.is_file() else None, weights_only=True)
        return trainer

    return fit
