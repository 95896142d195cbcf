"""What points of the plane bring to the Distiller."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fewstep.core.denoisers import Denoiser, NetworkDenoiser, NetworkFlowMap
from fewstep.core.objectives.contract import Data, Sample
from fewstep.core.rollouts import FewStep, FlowMapSteps
from fewstep.core.training.batches import StepKeyedBatches, consumed_batches
from fewstep.core.training.roles import Roles
from fewstep.modalities.plane.network import PointNetwork, with_two_times
from fewstep.modalities.plane.ring import RingTeacher, draw

PIXELS = 12  # of the square picture that a point is drawn into
EXTENT = 2.5  # the plane's visible part reaches from -EXTENT to EXTENT
BLOB = 0.35  # standard deviation of the drawn blob


class PlaneRoles(Roles):
    """Student and critic start as the given network, the teacher is exact.

    Args:
        start: a network of one time that has learned the teacher's velocity.
        rollout: the student's steps.
        two_times: whether the student is a ``FlowMap``.
        student: another student than a copy of ``start``, with its own denoiser's interface.
        unroll: keep the gradient of all calls of a rollout.
    """

    def __init__(
        self,
        start: PointNetwork,
        rollout: FewStep | FlowMapSteps,
        *,
        two_times: bool = False,
        student: nn.Module | None = None,
        unroll: bool = False,
    ) -> None:
        super().__init__()
        if student is None:
            student = (
                NetworkFlowMap(with_two_times(start)) if two_times else NetworkDenoiser(copy.deepcopy(start))
            )
        self.student = student
        self.teacher = RingTeacher(conditional=bool(start.config.labels))
        self.critic = NetworkDenoiser(copy.deepcopy(start))
        self.rollout = rollout
        self.unroll = unroll

    def generate(self, batch: Any, *, generator: torch.Generator, with_grad: bool) -> Sample:
        noise = torch.randn(batch["x0"].shape, generator=generator)
        x, call = self.rollout.rollout_and_call(
            self.denoiser(self.student),
            noise,
            batch["half"],
            exit_step=self.rollout.draw_exit_step(generator),
            generator=generator,
            unroll=self.unroll,
        )
        return Sample(x=x, condition=batch["half"], call=call)

    def data(self, batch: Any) -> Data:
        return Data(x0=batch["x0"], condition=batch["half"], noise=batch.get("noise"))

    def decode(self, x: Tensor) -> Tensor:
        return picture(x)

    def denoiser(self, student: nn.Module) -> Denoiser:
        assert isinstance(student, Denoiser)
        return student


def picture(x: Float[Tensor, " batch 2"]) -> Float[Tensor, " batch 1 3 height width"]:
    """Each point as a soft white blob on black, with x to the right and y upwards."""
    axis = torch.linspace(-EXTENT, EXTENT, PIXELS)
    across = torch.exp(-((axis - x[:, :1]) ** 2) / (2 * BLOB**2))
    upwards = torch.exp(-((axis.flip(0) - x[:, 1:]) ** 2) / (2 * BLOB**2))
    return (upwards[:, :, None] * across[:, None, :])[:, None, None].expand(-1, 1, 3, -1, -1)


class RingPoints(Dataset[dict[str, Tensor]]):
    """A pool of samples of the ring; whole batches are read at once. Pairs bring their own noise."""

    def __init__(self, x0: Tensor, half: Tensor, noise: Tensor | None = None) -> None:
        self.tensors = {"x0": x0, "half": half} | ({} if noise is None else {"noise": noise})

    def __len__(self) -> int:
        return len(self.tensors["x0"])

    def __getitems__(self, numbers: list[int]) -> dict[str, Tensor]:
        return {name: values[numbers] for name, values in self.tensors.items()}


class RingData(LightningDataModule):
    """Endless batches of the ring, the same ones after a resume.

    Args:
        points: the pool; 65,536 samples if None.
        batch_size: samples per batch.
        seed: key of samples and of their order.
    """

    def __init__(self, points: RingPoints | None = None, *, batch_size: int = 1024, seed: int = 0) -> None:
        super().__init__()
        self.points = RingPoints(*draw(65_536, seed=seed + 1)) if points is None else points
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> DataLoader[Any]:
        batches = StepKeyedBatches(
            len(self.points), self.batch_size, seed=self.seed, first_batch=consumed_batches(self.trainer)
        )
        return DataLoader(self.points, batch_sampler=batches, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch
