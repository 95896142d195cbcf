"""Which latent frame may look at which, for training a causal network on whole clips."""

import torch
from jaxtyping import Bool
from torch import Tensor


def chunk_causal(frames: int, *, chunk: int, window: int | None = None) -> Bool[Tensor, " query key"]:
    """Each frame sees its own chunk and earlier frames, back to ``window`` frames before its chunk's end."""
    index = torch.arange(frames)
    end = (index // chunk + 1) * chunk
    visible = index[None, :] < end[:, None]
    if window is not None:
        visible &= index[None, :] >= end[:, None] - window
    return visible


def teacher_forcing(frames: int, *, chunk: int) -> Bool[Tensor, " query key"]:
    """For ``[clean | noised]`` clips: clean frames are chunk-causal; a noised chunk sees itself and the
    clean chunks before it.

    This is what a cached rollout sees: the present at its noise level, the past clean.
    """
    causal = chunk_causal(frames, chunk=chunk)
    chunks = torch.arange(frames) // chunk
    own = chunks[:, None] == chunks[None, :]
    return torch.cat(
        [torch.cat([causal, torch.zeros_like(causal)], 1), torch.cat([causal & ~own, own], 1)], 0
    )
