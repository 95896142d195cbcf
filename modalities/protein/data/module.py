"""The Lightning data module of protein chains."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fewstep.core.training.batches import StepKeyedBatches, consumed_batches
from fewstep.core.training.randomness import step_generator
from fewstep.modalities.protein.chains import by_length, padded, real
from fewstep.modalities.protein.data.chain_set import (
    CHAINS,
    ChainSet,
    Split,
    bundled_chain_set,
    load_chain_set,
)
from fewstep.modalities.protein.data.fold_classes import fold_classes_of
from fewstep.modalities.protein.data.structure_files import read_structure_file, structure_files
from fewstep.modalities.protein.rotations import rotated_at_random

ANGSTROM_PER_NANOMETRE = 10.0
POOL = 16  # batches whose chains are sorted by length together
RESIDUES_AT_ONCE = 20_000  # when fold classes are told, padding included

Pick = tuple[int, int]  # number of a chain, and the key of its rotation


class Batch(TypedDict):
    """Chains of one batch.

    ``x0``: CA atoms in nanometre, centred, 0 at padding. ``mask``: True at residues. ``fold_class``: a number
    of ``FOLD_CLASSES``, or `UNKNOWN`.
    """

    x0: Float[Tensor, " batch residue 3"]
    mask: Bool[Tensor, " batch residue"]
    fold_class: Int[Tensor, " batch"]


class ChainDataset(Dataset[Batch]):
    """Chosen chains of a set; whole batches are read at once, padded to their longest chain.

    Args:
        chains: the set.
        numbers: which of its chains.
        rotate: whether a pick's key rotates its chain.
    """

    def __init__(self, chains: ChainSet, numbers: list[int], *, rotate: bool) -> None:
        self.chains, self.numbers, self.rotate = chains, numbers, rotate
        self.lengths = [int(chains.lengths[number]) for number in numbers]
        self.fold_classes = _fold_classes(chains, numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, pick: Pick) -> Batch:
        return self.__getitems__([pick])

    def __getitems__(self, picks: list[Pick]) -> Batch:
        rows = padded([self.chains.chain(self.numbers[place]) for place, _ in picks])
        mask = real(rows)
        x0 = (rows - rows.nanmean(1, keepdim=True)).nan_to_num(0.0) / ANGSTROM_PER_NANOMETRE
        if self.rotate:
            x0 = rotated_at_random(x0, torch.Generator().manual_seed(picks[0][1]))
        return {"x0": x0, "mask": mask, "fold_class": self.fold_classes[[place for place, _ in picks]]}


class BatchesOfLikeLength(Sampler[list[Pick]]):
    """``StepKeyedBatches`` of chains of neighbouring lengths; batch k follows from (seed, k, rank) alone.

    `POOL` batches are drawn together, sorted by length, cut, and given in random order.

    Args:
        lengths: residues of each chain.
        batch_size: chains per batch on each device.
        seed: key of all orders and rotations.
        first_batch: number of batches that the run has already consumed.
        rank: this process among ``world_size``.
        world_size: number of processes.
    """

    def __init__(
        self,
        lengths: list[int],
        batch_size: int,
        *,
        seed: int = 0,
        first_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.lengths, self.batch_size, self.first_batch = lengths, batch_size, first_batch
        self.pools = StepKeyedBatches(
            len(lengths), batch_size * POOL, seed=seed, rank=rank, world_size=world_size
        )

    def __iter__(self) -> Iterator[list[Pick]]:
        k = self.first_batch
        while True:
            yield self.batch(k)
            k += 1

    def batch(self, k: int) -> list[Pick]:
        """The picks of this rank's k-th batch."""
        number, place = divmod(k, POOL)
        pool = sorted(self.pools.batch(number), key=self.lengths.__getitem__)
        order = torch.randperm(POOL, generator=self._generator("order", number))
        start = int(order[place]) * self.batch_size
        keys = torch.randint(2**31, (self.batch_size,), generator=self._generator("rotations", k))
        return list(zip(pool[start : start + self.batch_size], keys.tolist(), strict=True))

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        return step_generator(self.pools.seed, purpose, number, self.pools.rank)


class ProteinDataModule(LightningDataModule):
    """Real CA chains, centred and, in training, rotated at random.

    The training loader is endless and continues exactly after a resume: set `trainer.max_steps`, and on
    several devices `trainer.use_distributed_sampler: false`.

    Args:
        root: a folder that `fewstep chains` wrote, or one of PDB, mmCIF or binary CIF files, which are then
            read anew by every run; None is the set that comes with the package.
        min_length: residues of the shortest chain.
        max_length: residues of the longest chain.
        batch_size: chains per batch on each device.
        val_batches: batches of the validation chains, evenly spread over their lengths.
        seed: key of the order of chains and of their rotations.
        num_workers: processes that gather batches; 0 suits chains in memory.
    """

    def __init__(
        self,
        root: str | None = None,
        min_length: int = 40,
        max_length: int = 128,
        batch_size: int = 24,
        val_batches: int = 4,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or val_batches < 1:
            raise ValueError(f"batch_size={batch_size} and val_batches={val_batches} must be at least 1")
        if not 2 <= min_length <= max_length:
            raise ValueError(f"min_length={min_length} must be from 2 to max_length={max_length}")
        self.root = None if root is None else Path(root)
        self.limits = (min_length, max_length)
        self.batch_size, self.val_batches = batch_size, val_batches
        self.seed, self.num_workers = seed, num_workers
        self._chains: ChainSet | None = None
        self._parts: dict[Split, ChainDataset] = {}

    def setup(self, stage: str) -> None:
        self._parts = {"train": self.load("train")}
        if self.trainer is None or self.trainer.limit_val_batches != 0:
            self._parts["val"] = self.load("val")

    def load(self, split: Split) -> ChainDataset:
        """The chains of a split that have the lengths asked for."""
        if self._chains is None:
            self._chains = _chains(self.root, self.limits)
        numbers = self._chains.chosen(split, lengths=self.limits)
        if not len(numbers):
            low, high = self._chains.lengths.min(), self._chains.lengths.max()
            raise ValueError(
                f"min_length={self.limits[0]} and max_length={self.limits[1]} leave no {split} chain of "
                f"{len(self._chains)} with {low} to {high} residues; widen them or add chains"
            )
        return ChainDataset(self._chains, numbers.tolist(), rotate=split == "train")

    def train_dataloader(self) -> DataLoader[Batch]:
        part = self._parts["train"]
        batches = BatchesOfLikeLength(
            part.lengths,
            self.batch_size,
            seed=self.seed,
            first_batch=consumed_batches(self.trainer),
            rank=0 if self.trainer is None else self.trainer.global_rank,
            world_size=1 if self.trainer is None else self.trainer.world_size,
        )
        return DataLoader(part, batch_sampler=batches, collate_fn=_as_it_is, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        if "val" not in self._parts:
            return []
        part = self._parts["val"]
        wanted = min(self.val_batches * self.batch_size, len(part))
        by_size = sorted(range(len(part)), key=part.lengths.__getitem__)
        places = torch.linspace(0, len(part) - 1, wanted).long().tolist()
        picks = [(by_size[place], 0) for place in places]
        batches = [picks[start : start + self.batch_size] for start in range(0, wanted, self.batch_size)]
        return DataLoader(part, batch_sampler=batches, collate_fn=_as_it_is)


def _chains(root: Path | None, limits: tuple[int, int]) -> ChainSet:
    """A set as it is; of files only chains within the limits of length, as longer ones may not fit a set."""
    if root is None:
        return bundled_chain_set()
    if not root.is_dir():
        raise FileNotFoundError(
            f"root={str(root)!r} is no folder; give one with {CHAINS} or structure files, or leave it out"
        )
    if (root / CHAINS).is_file():
        return load_chain_set(root)
    found = (chain for path in structure_files(root) for chain in read_structure_file(path))
    low, high = limits
    return ChainSet.of(chain for chain in found if low <= len(chain.coordinates) <= high)


def _fold_classes(chains: ChainSet, numbers: list[int]) -> Int[Tensor, " chain"]:
    told = torch.zeros(len(numbers), dtype=torch.int64)
    sizes = [int(chains.lengths[number]) for number in numbers]
    for group in by_length(sizes, residues=RESIDUES_AT_ONCE):
        told[group] = fold_classes_of(padded([chains.chain(numbers[place]) for place in group]))
    return told


def _as_it_is(batch: Any) -> Any:
    return batch
