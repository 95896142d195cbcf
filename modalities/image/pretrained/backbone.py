"""The frozen network under LoRA students, as a teacher."""

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoisers import Condition
from fewstep.core.paths import Path, Prediction
from fewstep.core.training.lora import Adapted
from fewstep.modalities.image.pretrained.teacher import DiffusersTeacher


class BackboneTeacher(nn.Module):
    """A view of a teacher's network that gives the network's own prediction too, as some guidance needs.

    Args:
        view: of the network of a ``DiffusersTeacher``, without an adapter.
    """

    def __init__(self, view: Adapted) -> None:
        super().__init__()
        self.view = view

    @property
    def path(self) -> Path:
        return self.view.path

    @property
    def prediction(self) -> Prediction:
        """What the network predicts."""
        return self._teacher.prediction

    def forward(
        self, x_t: Float[Tensor, " batch c h w"], t: Float[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, " batch c h w"]:
        return self.view(x_t, t, condition)

    def predict(
        self, x_t: Float[Tensor, " batch c h w"], t: Float[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, " batch c h w"]:
        """See ``DiffusersTeacher.predict``."""
        with self.view.using():
            return self._teacher.predict(x_t, t, condition)

    @property
    def _teacher(self) -> DiffusersTeacher:
        return cast(DiffusersTeacher, self.view.denoiser)
