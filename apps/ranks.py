"""Several processes that torchrun started with one command, and what each of them is."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """One of several processes that an engine has started with the same command."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Rank":
        """From RANK, WORLD_SIZE and LOCAL_RANK, which torchrun sets; alone without them.

        Raises:
            ValueError: for numbers that do not fit.
        """
        values = [environment.get(name, default) for name, default in
                  (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))]  # fmt: skip
        if not all(value.isdecimal() for value in values) or not int(values[0]) < int(values[1]):
            raise ValueError(
                f"RANK={values[0]} and WORLD_SIZE={values[1]} must be numbers, RANK the smaller one"
            )
        return cls(*map(int, values))

    def device(self, device: str) -> str:
        """Each local rank takes a GPU of its own where ``cuda`` names none."""
        return f"cuda:{self.local}" if device == "cuda" and self.size > 1 else device


@contextmanager
def in_group(rank: Rank, device: str) -> Iterator[None]:
    """The default group of ``torch.distributed``, over NCCL or, for CPUs, gloo; nothing for a single rank.

    Raises:
        ValueError: one CUDA device for several ranks.
    """
    if rank.size == 1:
        yield
        return
    import torch
    from torch import distributed as dist

    from fewstep.core.devices import usable_device

    if device.startswith("cuda"):
        if device != f"cuda:{rank.local}":
            raise ValueError(f"--device {device} is one device for {rank.size} processes; say --device cuda")
        torch.cuda.set_device(usable_device(device))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
