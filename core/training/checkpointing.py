"""Gradient checkpointing: layers that keep their input alone and compute again in the backward pass."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Surroundings = Callable[[], AbstractContextManager[None]]

_SURROUNDINGS: ContextVar[tuple[Surroundings, ...]] = ContextVar("surroundings", default=())


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> None:
    """Make modules keep nothing but their arguments for the backward pass, and compute again there.

    Weights, names and results stay as they are; a deep copy is checkpointed too. Without gradients, and so
    under ``torch.func.jvp`` without gradients, the modules run as before.
    """
    for block in blocks:
        block.forward = _Recomputed(block.forward)


@contextmanager
def recomputed_within(surroundings: Surroundings) -> Iterator[None]:
    """What is checkpointed within the block is computed again within ``surroundings()``.

    For state that lasts for a call, such as which of its adapters a network computes with. It is entered in
    the forward pass too, so entering it twice must be the same as once.
    """
    token = _SURROUNDINGS.set((*_SURROUNDINGS.get(), surroundings))
    try:
        yield
    finally:
        _SURROUNDINGS.reset(token)


class _Recomputed:
    def __init__(self, forward: Callable[..., object]) -> None:
        self._forward = forward

    def __call__(self, *arguments: object, **named: object) -> object:
        if not torch.is_grad_enabled():
            return self._forward(*arguments, **named)
        surroundings = _SURROUNDINGS.get()

        def run(*again: object) -> object:
            with ExitStack() as stack:
                for surrounding in surroundings:
                    stack.enter_context(surrounding())
                return self._forward(*again, **named)

        return checkpoint(run, *arguments, use_reentrant=False)
