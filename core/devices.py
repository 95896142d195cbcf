"""Devices by name, refused in one line where there is none."""

import torch


def usable_device(name: str) -> torch.device:
    """The device of this name, once a tensor has been there.

    Raises:
        ValueError: torch knows no such device, or this machine or this build of torch has none.
    """
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # what torch says without CUDA, or with too few devices
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"no device {name!r} here ({reason}); `fewstep doctor` lists devices") from error
