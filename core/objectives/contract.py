"""What the training module asks of a distillation objective."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Condition, Denoiser
from fewstep.core.layouts import DENSE, Layout

Diagnostics = dict[str, Tensor]
"""Detached scalars by name, for the log."""

Pixels = Callable[[], Tensor]
"""Decodes the student's sample when called: [B, N, 3, H, W] in [0, 1]."""


class Objective(ABC):
    """A loss for the student and one for its critic; the training module decides when each is stepped."""

    @property
    @abstractmethod
    def needs_critic(self) -> bool:
        """Whether a critic has to be trained along."""

    @property
    @abstractmethod
    def needs_pixels(self) -> bool:
        """Whether ``student_loss`` has to be given ``pixels``."""

    @abstractmethod
    def student_loss(
        self,
        x: Float[Tensor, " batch *event"],
        *,
        teacher: Denoiser,
        critic: Denoiser,
        condition: Condition,
        generator: torch.Generator | None = None,
        pixels: Pixels | None = None,
        layout: Layout = DENSE,
        weight: Tensor | None = None,
    ) -> tuple[Float[Tensor, ""], Diagnostics]:
        """The loss whose gradient improves the student's sample ``x``, which carries the student's graph.

        Args:
            teacher: already guided; like the critic it gets no gradient.
            weight: with a leading shape of ``x`` ([B], [B, F], ...), multiplies the gradient element by
                element: 0 for the frames that should receive none. Means stay over all elements.
        """

    @abstractmethod
    def critic_loss(
        self,
        x: Float[Tensor, " batch *event"],
        *,
        critic: Denoiser,
        condition: Condition,
        generator: torch.Generator | None = None,
        layout: Layout = DENSE,
    ) -> tuple[Float[Tensor, ""], Diagnostics]:
        """The critic's denoising loss on the student's sample ``x``, which gets no gradient."""
