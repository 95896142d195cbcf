"""How one value per sample spreads over a sample, and how a sample averages to one value."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class Layout(Protocol):
    """What objectives need to know about the shape of a sample, and all they know."""

    def expand(self, t: Tensor, like: Tensor) -> Tensor:
        """``t``, one per sample ([B]) or per frame ([B, F]), ready to broadcast against ``like``."""
        ...

    def mean(self, x: Tensor) -> Float[Tensor, " batch"]:
        """Mean over the real elements of each sample."""
        ...

    def times(self, t: Float[Tensor, " batch"]) -> Tensor:
        """``t`` in the shape in which a denoiser takes it."""
        ...

    def batch_size(self, x: Tensor) -> int:
        """Number of samples in ``x``."""
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

    def times(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return t

    def batch_size(self, x: Tensor) -> int:
        return len(x)


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

    def times(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return t

    def batch_size(self, x: Tensor) -> int:
        return len(x)


@dataclass(frozen=True, eq=False)
class Packed:
    """Samples of unequal length, one after another without padding, as sparse 3D has them.

    ``x`` is [N, ...] over all samples' tokens; ``index`` says for each token which sample it belongs to,
    in any order. Denoisers get one time per token.
    """

    index: Int[Tensor, " token"]
    size: int

    def __post_init__(self) -> None:
        counts = torch.bincount(self.index, minlength=self.size) if len(self.index) else self.index
        if len(counts) != self.size or not bool((counts > 0).all()):
            raise ValueError(
                f"index names {len(counts)} samples for size={self.size}; every sample from 0 to size - 1 "
                "must own a token"
            )

    def expand(self, t: Tensor, like: Tensor) -> Tensor:
        """``t`` is [B], one per sample, or already has the leading shape of ``like``."""
        per_token = t[self.index] if t.shape == (self.size,) else t
        return append_dims(per_token, like)

    def mean(self, x: Float[Tensor, " token *event"]) -> Float[Tensor, " batch"]:
        per_token = x.flatten(1).mean(1) if x.ndim > 1 else x
        total = per_token.new_zeros(self.size).index_add(0, self.index, per_token)
        return total / torch.bincount(self.index, minlength=self.size)

    def times(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " token"]:
        return t[self.index]

    def batch_size(self, x: Tensor) -> int:
        return self.size


DENSE = Dense()
