"""How one value per sample spreads over a sample, and how a sample averages to one value."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class Layout(Protocol):
    """What objectives need to know about the shape of a sample, and all they know."""

    def expand(self, t: Tensor, like: Tensor) -> Tensor:
        """``t`` with the leading shape of ``like`` ([B], or [B, F] for one per frame), ready to broadcast."""
        ...

    def mean(self, x: Tensor) -> Float[Tensor, " batch"]:
        """Mean over the real elements of each sample."""
        ...


def append_dims(t: Tensor, like: Tensor) -> Tensor:
    """``t`` with trailing dimensions of size 1 up to those of ``like``, whose leading shape it must have."""
    if t.shape != like.shape[: t.ndim]:
        raise ValueError(
            f"a value of shape {tuple(t.shape)} does not spread over a sample of shape {tuple(like.shape)}; "
            f"give it the leading shape, such as {tuple(like.shape[:1])} or {tuple(like.shape[:2])}"
        )
    return t.reshape(*t.shape, *[1] * (like.ndim - t.ndim))


@dataclass(frozen=True)
class Dense:
    """Every element is real: images, video, latents in a box."""

    def expand(self, t: Tensor, like: Tensor) -> Tensor:
        return append_dims(t, like)

    def mean(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
        return x.flatten(1).mean(1) if x.ndim > 1 else x


@dataclass(frozen=True, eq=False)
class Masked:
    """Padded samples: ``mask`` is True at real elements and has a sample's leading shape, [B, L] or longer.

    Padding, whatever finite values it holds, changes neither a mean nor its gradient.
    """

    mask: Bool[Tensor, " batch *leading"]

    def __post_init__(self) -> None:
        if self.mask.ndim < 2 or not bool(self.mask.flatten(1).any(1).all()):
            raise ValueError(
                f"mask of shape {tuple(self.mask.shape)} must be [B, L, ...] with a real element per sample; "
                "drop empty samples before batching"
            )

    def expand(self, t: Tensor, like: Tensor) -> Tensor:
        return append_dims(t, like)

    def mean(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
        real = append_dims(self.mask, x).expand_as(x).flatten(1)
        return torch.where(real, x.flatten(1), 0.0).sum(1) / real.sum(1)


DENSE = Dense()
