"""Exponential moving average of a module's weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WARMUP_OFFSET = 10.0  # decay after n updates is at most (1 + n) / (10 + n): the initialisation fades fast


class EMA(nn.Module):
    """Float32 running average of the parameters that were trainable when it was built.

    The average is a set of buffers: as an attribute of a LightningModule it moves with the device and is part
    of every checkpoint, so that a resumed run continues bit for bit. It holds no reference to the averaged
    module, whose buffers are not averaged.

    Args:
        module: the module to follow; its current weights are the first value of the average.
        decay: weight of the old average in one update, in [0, 1).
        start_step: updates before this one copy the weights instead of averaging them.
    """

    num_updates: Tensor

    def __init__(self, module: nn.Module, *, decay: float = 0.999, start_step: int = 0) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.start_step = start_step
        self.names = tuple(name for name, p in module.named_parameters() if p.requires_grad)
        if not self.names:
            raise ValueError("module has no trainable parameter to average; build the EMA before freezing it")
        parameters = dict(module.named_parameters())
        for name in self.names:
            self.register_buffer(_buffer_name(name), parameters[name].detach().float().clone())
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EMA":
        # bf16-true and half() would round the average itself; only moves between devices are let through
        return super()._apply(lambda x: x.to(fn(x).device), recurse)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present weights; call once after each optimizer step."""
        n = int(self.num_updates)
        averaging = n >= self.start_step
        n_averaged = n - self.start_step
        decay = min(self.decay, (1 + n_averaged) / (WARMUP_OFFSET + n_averaged)) if averaging else 0.0
        for shadow, parameter in self._pairs(module):
            shadow.lerp_(parameter.detach().to(shadow), 1.0 - decay)
        self.num_updates += 1

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's weights by the average (in the module's dtype)."""
        for shadow, parameter in self._pairs(module):
            parameter.copy_(shadow)

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """Within the block the module computes with the average; afterwards its weights are back exactly."""
        kept = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(kept[name])

    def averaged_state(self) -> dict[str, Tensor]:
        """The averaged parameters in float32, by their names in the module."""
        return {name: self.get_buffer(_buffer_name(name)).clone() for name in self.names}

    def _pairs(self, module: nn.Module) -> Iterator[tuple[Tensor, nn.Parameter]]:
        parameters = dict(module.named_parameters())
        missing = [name for name in self.names if name not in parameters]
        if missing:
            raise ValueError(
                f"module lacks averaged parameters {missing[:3]}; pass the one the EMA was built of"
            )
        for name in self.names:
            yield self.get_buffer(_buffer_name(name)), parameters[name]


def _buffer_name(parameter_name: str) -> str:
    # a buffer's name may not contain dots
    return "average/" + parameter_name.replace(".", "/")
