"""Which attention kernel is the fastest on a device, measured for the shapes that will occur there."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fewstep.core.attention import (
    BACKENDS,
    PROBE_FAILURES,
    Backend,
    attention,
    available_backends,
    prefer,
)

WARM_UPS, RUNS = 2, 5
UNMEASURED = "matmul"  # keeps all logits, gigabytes for long videos, and is never the fastest there

Timer = Callable[[Callable[[], Tensor]], float]
"""Milliseconds of one call; raises what the call raises."""


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """Sizes of one call: ``queries`` and ``keys`` are numbers of tokens."""

    queries: int
    keys: int
    heads: int
    dim: int
    batch: int = 1


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What attention takes first on a device.

    Args:
        backend: None where nothing was measured and ``attention`` goes by its inputs alone.
        milliseconds: of one call for each shape, together.
        failures: of those that could not be measured, in a line.
    """

    backend: Backend | None = None
    milliseconds: Mapping[Backend, float] = field(default_factory=dict)
    failures: Mapping[Backend, str] = field(default_factory=dict)


def cuda_milliseconds(run: Callable[[], Tensor]) -> float:
    """The fastest of a few calls on the present CUDA device, after a few to warm up."""
    for _ in range(WARM_UPS):
        run()
    found = []
    for _ in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return min(found)


def prefer_fastest(
    shapes: Sequence[AttentionShape],
    *,
    device: torch.device,
    dtype: torch.dtype,
    timer: Timer = cuda_milliseconds,
    among: Collection[Backend] = BACKENDS,
) -> Choice:
    """Time every backend of ``among`` that works on ``device`` and let ``attention`` take the fastest first
    from now on. One that raises is left out. On a CPU nothing is measured: there the choice by inputs is.
    """
    if device.type == "cpu":
        return Choice()
    with torch.no_grad():
        inputs = [_inputs(shape, device, dtype) for shape in shapes]
        device = inputs[0][0].device  # with its number
        milliseconds: dict[Backend, float] = {}
        failures: dict[Backend, str] = {}
        for backend in available_backends(device):
            if backend == UNMEASURED or backend not in among:
                continue
            calls = [partial(attention, *qkv, backend=backend) for qkv in inputs]
            try:
                with torch.cuda.device_of(inputs[0][0]):  # whose streams the timer's events mark
                    milliseconds[backend] = sum(timer(call) for call in calls)
            except PROBE_FAILURES as error:
                failures[backend] = f"{type(error).__name__}: {error}".partition("\n")[0]
    if not milliseconds:
        return Choice(failures=failures)
    fastest = min(milliseconds, key=lambda backend: milliseconds[backend])
    prefer(fastest, device)
    return Choice(backend=fastest, milliseconds=milliseconds, failures=failures)


def _inputs(shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    sizes = [(shape.batch, tokens, shape.heads, shape.dim) for tokens in (shape.queries, shape.keys)]
    q, k, v = (torch.randn(size, device=device, dtype=dtype) for size in (sizes[0], sizes[1], sizes[1]))
    return q, k, v
