"""Latents of a folder of objects, encoded once and kept on disk."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.modalities.shape3d.data.shapes import Batch, Latents, Shapes

Encode = Callable[[Batch], tuple[Tensor, Tensor]]
"""A batch of objects to means and log variances of their latents: ``[B, channel, ...]``, or ``[N, channel]``
for voxels.
"""


def cached_latents(
    shapes: Shapes, encode: Encode, *, name: str, weights: str, cache: Path, batch_size: int = 16
) -> Latents:
    """Posterior means of all objects' latents, from a file in `cache` that the first call writes.

    They are to be normalised by mean and deviation of the posteriors' *draws*: by that of the means, a
    channel that tells next to nothing, mean 0 and variance 1 everywhere, would be blown up to count like all
    others.

    Args:
        shapes: with the parts that `encode` reads.
        encode: posteriors of a batch.
        name: of the file, with a key of what it holds.
        weights: digest of the encoder's weights.
        batch_size: objects encoded at a time.
    """
    states = [(shard.path.name, shard.path.stat().st_size, len(shard)) for shard in shapes.shards]
    key = hashlib.sha256(json.dumps([states, weights]).encode()).hexdigest()[:16]
    path = cache / f"{name}-{key}.safetensors"
    if not path.exists():
        rank_zero_info(f"encoding {len(shapes)} objects, once, into {path}")
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file(_encoded(shapes, encode, batch_size), part)
        part.replace(path)
    stored = load_file(path)
    return Latents(values=stored["values"], mean=stored["mean"], std=stored["std"])


@torch.no_grad()
def _encoded(shapes: Shapes, encode: Encode, batch_size: int) -> dict[str, Tensor]:
    rows: list[Tensor] = []
    means: list[Tensor] = []
    squares: list[Tensor] = []
    for start in range(0, len(shapes), batch_size):
        batch = shapes.__getitems__([(n, 0) for n in range(start, min(start + batch_size, len(shapes)))])
        mean, logvar = (value.float().cpu() for value in encode(batch))
        rows.append(mean)
        means += [one.mean(0) for one in _split(mean, batch)]
        squares += [one.mean(0) for one in _split(mean.square() + logvar.exp(), batch)]
    # as TRELLIS has it: every object counts alike, however many voxels it has
    centre = torch.stack(means).mean(0)
    std = (torch.stack(squares).mean(0) - centre.square()).clamp(min=0).sqrt()
    if not bool((std > 0).all()):
        raise ValueError(f"std={std.tolist()} of the latents has zeros; train the encoder first")
    return {"values": torch.cat(rows).contiguous(), "mean": centre, "std": std}


def _split(values: Tensor, batch: Batch) -> list[Float[Tensor, " row channel"]]:
    """Values of each object, channels last."""
    if values.ndim > 2:
        return list(values.flatten(2).transpose(1, 2))
    return [values[batch["coords"][:, 0] == sample] for sample in range(len(batch["numbers"]))]
