"""Random numbers keyed by where they are used, so that a resumed run draws the same ones."""

import random

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


def step_seed(seed: int, *key: int | str) -> int:
    """A 63-bit seed that depends on the run's seed and every element of the key, and nothing else."""
    return random.Random("/".join(map(str, (seed, *key)))).getrandbits(63)


def step_generator(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one step: `step_generator(seed, step, rank, device=...)`."""
    return torch.Generator(device).manual_seed(step_seed(seed, *key))


class SeedEveryBatch(Callback):
    """Seed torch's global generators before each training batch by the batch's number.

    Dropout and modules that draw from the global generator then repeat after a resume what they would have
    drawn without the interruption.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        torch.manual_seed(step_seed(self.seed, trainer.fit_loop.total_batch_idx, trainer.global_rank))
