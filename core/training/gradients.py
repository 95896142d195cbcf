"""Gradients between backward and step: averaged over processes, measured, clipped, withheld."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor

BUCKET_ELEMENTS = (
    2**23
)  # 32 MiB of float32 a message: long enough for the bandwidth, short beside the weights
CLIP_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_


@contextmanager
def withheld(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the block these parameters, all trainable, get no gradient; it passes through their modules."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace the gradients by their mean over all processes; a process that has none counts as zero.

    Parameters that no process used keep None, so that an optimizer skips them as it would in one process.
    Sharded parameters (DTensors) are left alone: FSDP2 reduced theirs in the backward pass.
    """
    whole = [p for p in parameters if not isinstance(p, DTensor)]
    if not (dist.is_available() and dist.is_initialized()) or not whole:
        return
    used = torch.tensor([p.grad is not None for p in whole], dtype=torch.float32, device=whole[0].device)
    dist.all_reduce(used)
    for bucket in _buckets([p for p, count in zip(whole, used.tolist(), strict=True) if count]):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
        dist.all_reduce(flat)
        pieces = flat.div_(dist.get_world_size()).split([p.numel() for p in bucket])
        for parameter, piece in zip(bucket, pieces, strict=True):
            parameter.grad = piece.view_as(parameter).clone()


@torch.no_grad()
def share_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers, as DistributedDataParallel does."""
    if dist.is_available() and dist.is_initialized():
        persistent = module.state_dict(keep_vars=True)
        for name, buffer in module.named_buffers():
            if name in persistent:
                dist.broadcast(buffer, src=0)


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Float[Tensor, ""]:
    """Scale all gradients together so that their norm is at most ``limit``; returns the norm before that.

    Sharded and whole parameters may come together; the norm is that of the full gradient.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    sharded = [g for g in gradients if isinstance(g, DTensor)]
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    norms = [nn.utils.get_total_norm(group) for group in (sharded, whole) if group]
    full = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm = torch.stack(full).norm() if full else torch.zeros(())
    factor = limit / (float(norm) + CLIP_EPS)
    if factor < 1:
        for gradient in gradients:
            gradient.mul_(factor)
    return norm


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters in order, cut where the dtype changes or a message is full."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (parameter.dtype != bucket[0].dtype or size + parameter.numel() > BUCKET_ELEMENTS):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket
