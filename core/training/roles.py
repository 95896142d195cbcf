"""What a modality supplies to be distilled: the networks, the student's rollout, the data."""

from abc import ABC
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from fewstep.core.denoisers import Condition, Denoiser
from fewstep.core.objectives.contract import Data, Sample
from fewstep.core.training.sharding import shard_by_blocks


class Roles(nn.Module, ABC):
    """Student, teacher and critic of one modality; the only class a new modality writes to use the Distiller.

    Subclasses set, in their constructor:

    * ``student``: its trainable parameters are what is distilled.
    * ``teacher``: a Denoiser that is an nn.Module, usually `Guided`; the Distiller freezes it.
    * ``critic``: the same, unguided and trainable, usually a copy of the unguided teacher.
    * ``null_condition``: what stands for no condition, for objectives that guide by themselves.

    and write the methods that their objectives need. The Distiller drops a teacher or a critic that its
    objective has no use for.
    """

    student: nn.Module
    teacher: Denoiser | None
    critic: Denoiser | None
    null_condition: Condition
    choices: torch.Generator | None

    def __init__(self) -> None:
        super().__init__()
        self.teacher = None
        self.critic = None
        self.null_condition = None
        self.choices = None

    def generate(self, batch: object, *, generator: torch.Generator, with_grad: bool) -> Sample:
        """The student's samples for a batch; every random number comes from `generator`."""
        raise NotImplementedError(f"{type(self).__name__} generates no samples: write generate()")

    def choose(self, count: int, generator: torch.Generator) -> int:
        """A uniformly random number below ``count``: a step grid, an exit step, a length.

        In training every process draws the same one, so that all run equally many network calls: networks
        sharded over processes wait for each other in every call. Alone it comes from ``generator``.
        """
        source = self.choices or generator
        return int(torch.randint(count, (), generator=source, device=source.device))

    def data(self, batch: object) -> Data:
        """The real samples of a batch."""
        raise NotImplementedError(f"{type(self).__name__} gives no real samples: write data()")

    def decode(self, x: Tensor) -> Tensor:
        """Pixels [B, N, 3, H, W] in [0, 1] of samples, differentiable."""
        raise NotImplementedError(f"{type(self).__name__} has no pixels to score: write decode()")

    def denoiser(self, student: nn.Module) -> Denoiser:
        """The student, or a copy of it with averaged weights, as a denoiser."""
        if not isinstance(student, Denoiser):
            raise NotImplementedError(
                f"student {type(student).__name__} is no denoiser: write {type(self).__name__}.denoiser()"
            )
        return student

    def shard(self, network: nn.Module, mesh: DeviceMesh) -> None:
        """Spread one network over processes (FSDP2); write it for networks with several entries."""
        shard_by_blocks(network, mesh)

    def save_student(
        self, folder: Path, *, training: dict[str, object], metrics: dict[str, int | float]
    ) -> None:
        """Write the student as it is now as a model folder that the modality loads."""
        raise NotImplementedError(f"{type(self).__name__} cannot write a student: write save_student()")

    def pictures(self, batch: object, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Pictures [3, H, W] in [0, 1] of the student's samples, by name, for the report; optional."""
        return {}

    def validate(self, batch: object, *, generator: torch.Generator) -> dict[str, Tensor]:
        """0-d metrics of the student on a validation batch, logged as `val/NAME`; optional."""
        raise NotImplementedError(
            f"{type(self).__name__} has no validate(); remove the validation data or write it"
        )
