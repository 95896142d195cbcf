"""Noise keyed by where it is used, never drawn in sequence: pauses and batches cannot change a pixel."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor


def chunk_noise(seed: int, chunk: int, step: int, shape: tuple[int, ...]) -> Float[Tensor, " *shape"]:
    """Standard Gaussian noise on the CPU for step ``step`` of chunk ``chunk`` of the stream ``seed``."""
    key = hashlib.blake2b(f"{seed}|{chunk}|{step}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
    return torch.randn(shape, generator=generator)


def sent(noise: Tensor, device: torch.device) -> Tensor:
    """The noise on a device; a CUDA device fetches it when it comes to it, and nobody waits for that."""
    if device.type == "cuda":
        return noise.pin_memory().to(device, non_blocking=True)
    return noise.to(device)
