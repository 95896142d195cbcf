"""What the training module asks of a distillation objective, and what it hands to one."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoisers import Condition, Denoiser
from fewstep.core.layouts import DENSE, Layout
from fewstep.core.rollouts import Call
from fewstep.core.schedules import TimeSampler

Diagnostics = dict[str, Tensor]
"""Detached scalars by name, for the log."""

Decode = Callable[[Tensor], Tensor]
"""Samples to pixels [B, N, 3, H, W] in [0, 1]; differentiable where it is called with gradients on."""

Need = Literal["student", "two_times", "teacher", "critic", "sample", "data", "target", "decode"]
"""What an objective cannot do without:

* ``student``: the student as a denoiser, to call it. ``two_times``: as a ``FlowMap``.
* ``teacher``, ``critic``: these networks; a critic is trained along with ``critic_loss``.
* ``sample``: the student's own samples. ``data``: real ones (or noise-data pairs, if ``Data.noise`` is read).
* ``target``: a running average of the student.
* ``decode``: pixels of a sample.
"""

Given = TypeVar("Given")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A batch of the student's own samples.

    Args:
        x: with the student's graph on the student's turn. [B, ...], or as ``layout`` says.
        condition: given to teacher and critic (the student's own may differ).
        weight: [B], [B, F] or the shape of x; multiplies the student's gradient element by element, for
            example 0 on frames that the gradient does not reach. Means stay over all elements.
        call: the student's last call, for objectives on trajectories.
        diagnostics: 0-d values about the rollout, for the log.
    """

    x: Tensor
    condition: Condition = None
    layout: Layout = DENSE
    weight: Tensor | None = None
    call: Call | None = None
    diagnostics: Diagnostics = field(default_factory=dict)

    def detach(self) -> "Sample":
        """The same sample without the student's graph."""
        return replace(self, x=self.x.detach())


@dataclass(frozen=True, kw_only=True)
class Data:
    """A batch of real samples ``x0``; ``noise`` is the noise each belongs to where they come as pairs."""

    x0: Tensor
    condition: Condition = None
    layout: Layout = DENSE
    noise: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Everything that a loss may look at in one update; what is not there is None.

    Args:
        student: the network in training, as a denoiser; a ``FlowMap`` if it takes two times.
        teacher: frozen and already guided.
        critic: trained on the student's samples, unguided.
        target: a running average of the student, frozen.
        null_condition: for guidance that an objective does itself; batch size 1 where it is a tensor.
        generator: source of all random numbers of the loss, on the samples' device; None is the global one.
        update: updates of the student so far, for weights that change over training.
    """

    student: Denoiser | None = None
    teacher: Denoiser | None = None
    critic: Denoiser | None = None
    target: Denoiser | None = None
    sample: Sample | None = None
    data: Data | None = None
    null_condition: Condition = None
    decode: Decode | None = None
    generator: torch.Generator | None = None
    update: int = 0

    def times(self, sampler: TimeSampler, x: Tensor, layout: Layout) -> Float[Tensor, " batch"]:
        """One training time per sample of ``x``."""
        return sampler.sample(layout.batch_size(x), generator=self.generator, device=x.device)

    def noise_like(self, x: Tensor) -> Tensor:
        """Standard Gaussian noise of the shape, dtype and device of ``x``."""
        return torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)

    def uniform(self, size: int, device: torch.device) -> Float[Tensor, " size"]:
        """Uniform numbers in [0, 1), float32."""
        return torch.rand(size, generator=self.generator, device=device)


class Objective(ABC):
    """A loss for the student and, for many, one for a critic; the training module decides when.

    An objective that is an ``nn.Module`` may own parameters, such as a discriminator's: they are trained
    with the critic's optimizer, on the critic's turn, and frozen on the student's.
    """

    @property
    @abstractmethod
    def needs(self) -> frozenset[Need]:
        """What a ``Turn`` must hold."""

    @abstractmethod
    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """The student's loss, a mean over the batch; gradients reach nothing but the student."""

    def critic_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """The critic's loss on the student's samples, which come detached."""
        raise NotImplementedError(f"{type(self).__name__} trains no critic")

    def after_student_step(self, student: nn.Module, critic: nn.Module | None) -> None:  # noqa: B027 (optional)
        """Called after each optimizer step of the student, for methods that then move the critic."""


def given(value: Given | None, name: Need, objective: Objective) -> Given:
    """``value``, or a ValueError that names what is missing."""
    if value is None:
        raise ValueError(f"{type(objective).__name__} needs {name}, which this modality's roles do not give")
    return value
