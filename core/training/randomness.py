"""Random numbers keyed by where they are used, so that a resumed run draws the same ones."""

import random

import torch


def step_seed(seed: int, *key: int | str) -> int:
    """A 63-bit seed that depends on the run's seed and every element of the key, and nothing else."""
    return random.Random("/".join(map(str, (seed, *key)))).getrandbits(63)


def step_generator(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one step: `step_generator(seed, step, rank, device=...)`."""
    return torch.Generator(device).manual_seed(step_seed(seed, *key))
