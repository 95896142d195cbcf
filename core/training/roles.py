"""What a modality supplies to be distilled: the three networks and the student's rollout."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep.core.denoisers import Condition, Denoiser
from fewstep.core.layouts import DENSE, Layout


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One batch of the student's own samples and what objectives need beside them.

    Args:
        x: [B, ...], with the student's graph if it was asked for.
        condition: given to teacher and critic (the student's own may differ).
        weight: [B], [B, F] or the shape of x; multiplies the student's gradient, for example 0 on frames that
            the gradient does not reach.
        pixels: decodes x to [B, N, 3, H, W] in [0, 1] when a reward asks for it.
        layout: how the sample is laid out.
        diagnostics: 0-d values to log as `diag/NAME`.
    """

    x: Tensor
    condition: Condition
    weight: Tensor | None = None
    pixels: Callable[[], Tensor] | None = None
    layout: Layout = DENSE
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


class Roles(nn.Module, ABC):
    """Student, teacher and critic of one modality; the only class a new modality writes to use the Distiller.

    Subclasses set, in their constructor:

    * ``student``: its trainable parameters are what is distilled; ``generate`` runs it.
    * ``teacher``: a Denoiser that is an nn.Module, usually `Guided`; the Distiller freezes it.
    * ``critic``: the same, unguided and trainable, usually a copy of the unguided teacher.
    """

    student: nn.Module
    teacher: Denoiser
    critic: Denoiser

    @abstractmethod
    def generate(self, batch: object, *, generator: torch.Generator, with_grad: bool) -> Generated:
        """The student's samples for a batch; every random number comes from `generator`."""

    def validate(self, batch: object, *, generator: torch.Generator) -> dict[str, Tensor]:
        """0-d metrics of the student on a validation batch, logged as `val/NAME`; optional."""
        raise NotImplementedError(
            f"{type(self).__name__} has no validate(); remove the validation data or write it"
        )
