"""Networks built without memory for weights that are about to come from a file."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook


@contextmanager
def weightless() -> Iterator[None]:
    """Parameters of modules that this thread builds inside lie on the meta device: they have a shape, a dtype
    and no numbers, until ``load_state_dict(..., assign=True)`` puts a file's tensors in their place.

    Buffers and tables computed in a constructor are there as ever; under ``torch.device("meta")`` those that
    no file holds (positions, statistics) would be lost.
    """
    builder = threading.get_ident()

    def without_numbers(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if threading.get_ident() != builder or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    # torch's initialisers come after the registration and do nothing on the meta device, so that the memory
    # a parameter was made with is given back before it was ever touched
    # whose types say that hooks answer nothing; its documentation says that the answer is taken
    handle = register_module_parameter_registration_hook(without_numbers)  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        handle.remove()
