"""Endless training batches whose order a resumed run continues exactly."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import Sampler

from fewstep.core.training.randomness import step_generator

Pick = tuple[int, int]  # a dataset index, and a random number that chooses among its captions or pictures


class StepKeyedBatches(Sampler[list[int]]):
    """Endless batches of dataset indices; batch k follows from (seed, k) alone, over reshuffled epochs.

    Give it to a DataLoader as `batch_sampler`, and the Trainer `use_distributed_sampler=False`: it knows its
    process. Such a loader has no length: set `trainer.max_steps`, and for
    validation `trainer.val_check_interval` with `check_val_every_n_epoch: null`.

    Args:
        size: number of samples in the dataset.
        batch_size: samples per batch on each rank; batches run over the end of an epoch into the next.
        seed: key of all orders.
        first_batch: number of batches that the run has already consumed, see `consumed_batches`.
        rank: this process among `world_size`; ranks take disjoint samples of the same order.
        world_size: number of processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        first_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if size < 1 or batch_size < 1:
            raise ValueError(
                f"size={size} and batch_size={batch_size} must be at least 1; is the dataset empty?"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} must be in 0..{world_size - 1}")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.first_batch = first_batch
        self.rank = rank
        self.world_size = world_size
        self._epoch = -1
        self._order: Tensor | None = None

    @classmethod
    def of_trainer(
        cls, size: int, batch_size: int, trainer: Trainer | None, *, seed: int = 0
    ) -> "StepKeyedBatches":
        """The batches of this process, from where the trainer's run stands; for use in `train_dataloader`."""
        return cls(
            size,
            batch_size,
            seed=seed,
            first_batch=consumed_batches(trainer),
            rank=0 if trainer is None else trainer.global_rank,
            world_size=1 if trainer is None else trainer.world_size,
        )

    def __iter__(self) -> Iterator[list[int]]:
        for k in count(self.first_batch):
            yield self.batch(k)

    def batch(self, k: int) -> list[int]:
        """The indices of this rank's k-th batch."""
        start = (k * self.world_size + self.rank) * self.batch_size
        return [self._index(position) for position in range(start, start + self.batch_size)]

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch or self._order is None:
            self._order = torch.randperm(self.size, generator=step_generator(self.seed, "epoch", epoch))
            self._epoch = epoch
        return int(self._order[place])


class PhrasedBatches(Sampler[list[Pick]]):
    """`StepKeyedBatches` that also choose the captions; batch k follows from (seed, k, rank) alone."""

    def __init__(self, batches: StepKeyedBatches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[Pick]]:
        for k in count(self.batches.first_batch):
            yield self.batch(k)

    def batch(self, k: int) -> list[Pick]:
        """The picks of this rank's k-th batch."""
        numbers = self.batches.batch(k)
        generator = step_generator(self.batches.seed, "captions", k, self.batches.rank)
        draws = torch.randint(2**31, (len(numbers),), generator=generator)
        return list(zip(numbers, draws.tolist(), strict=True))


def spread_batches(size: int, batches: int, batch_size: int) -> list[list[Pick]]:
    """At most so many batches, evenly over a dataset, in a fixed order and with every phrasing in turn."""
    wanted = min(batches * batch_size, size)
    numbers = torch.linspace(0, size - 1, wanted).long().tolist()
    picks = list(zip(numbers, range(wanted), strict=True))
    return [picks[start : start + batch_size] for start in range(0, wanted, batch_size)]


def splits_needed(root: Path, trainer: Trainer | None) -> tuple[str, ...]:
    """``train``, and ``val`` where it is there or the trainer validates."""
    validated = trainer is None or trainer.limit_val_batches != 0
    return ("train", "val") if validated or (root / "val").is_dir() else ("train",)


def consumed_batches(trainer: Trainer | None) -> int:
    """Training batches consumed before this fit, 0 for a fresh run; for use in `train_dataloader`."""
    return 0 if trainer is None else trainer.fit_loop.total_batch_idx + 1
