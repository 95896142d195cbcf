"""What an objective asks of a reward."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Condition

OVERSHOOT = 0.25  # decoders overshoot [0, 1] a little; pixels in [-1, 1] reach far below it


class Reward(ABC):
    """Scores finished samples; higher is better."""

    name: str
    """For logs and errors."""

    differentiable: bool
    """Whether a gradient with respect to the pixels flows through ``score``."""

    @abstractmethod
    def score(
        self, pixels: Float[Tensor, " batch frame 3 height width"], condition: Condition = None
    ) -> Float[Tensor, " batch"]:
        """One score per clip of ``pixels`` in [0, 1]; ``condition`` is what the sample was generated from."""


def check_pixels(pixels: Tensor, *, min_frames: int = 1) -> None:
    """Raise where pixels are not [B, N, 3, H, W] in [0, 1]: the range is the easiest thing to get wrong."""
    if pixels.ndim != 5 or pixels.shape[2] != 3 or pixels.shape[1] < min_frames:
        raise ValueError(
            f"pixels of shape {tuple(pixels.shape)} must be [B, N, 3, H, W] with at least {min_frames} frames"
        )
    low, high = float(pixels.detach().min()), float(pixels.detach().max())
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise ValueError(f"pixels span [{low:.3g}, {high:.3g}], not [0, 1]; map [-1, 1] with 0.5 * x + 0.5")
