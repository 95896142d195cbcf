"""The Lightning data module of 3D objects."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from fewstep.core.training.batches import PhrasedBatches, StepKeyedBatches, splits_needed, spread_batches
from fewstep.modalities.shape3d.data.shapes import Batch, Latents, Part, Shapes


class ShapeDataModule(LightningDataModule):
    """The objects in `root/train` and `root/val`, as `fewstep render --world shapes` writes them.

    `root/val` may be missing where nothing is validated (`trainer.limit_val_batches: 0`).

    The training loader is endless and continues exactly after a resume: set `trainer.max_steps`, and on
    several devices `trainer.use_distributed_sampler: false`.

    Args:
        root: folder with the folders `train` and `val`.
        parts: what batches hold, see `Shapes`.
        batch_size: objects per batch on each device.
        val_batches: batches of the validation set, evenly spread over it.
        structure_encoder: model folder that encodes `structure_latents`.
        latent_encoder: model folder that encodes `latents`.
        seed: key of the order of objects and of the choice of pictures.
        num_workers: processes that gather batches; 0 suits files in memory.
        cache: folder for latents, `root` by default.
    """

    def __init__(
        self,
        root: str,
        parts: list[Part],
        batch_size: int = 16,
        val_batches: int = 4,
        structure_encoder: str | None = None,
        latent_encoder: str | None = None,
        seed: int = 0,
        num_workers: int = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or val_batches < 1:
            raise ValueError(f"batch_size={batch_size} and val_batches={val_batches} must be at least 1")
        for part, encoder in (("structure_latents", structure_encoder), ("latents", latent_encoder)):
            if (part in parts) != (encoder is not None):
                name = "structure_encoder" if part == "structure_latents" else "latent_encoder"
                raise ValueError(
                    f"parts={parts} and {name}={encoder!r}: give both {part!r} and {name}, or none"
                )
        self.root, self.cache = Path(root), Path(root if cache is None else cache)
        self.parts = tuple(parts)
        self.batch_size, self.val_batches = batch_size, val_batches
        self.structure_encoder, self.latent_encoder = structure_encoder, latent_encoder
        self.seed, self.num_workers = seed, num_workers
        self._splits: dict[str, Shapes] = {}

    def prepare_data(self) -> None:
        for split in splits_needed(self.root, self.trainer):
            self.load(split)

    def setup(self, stage: str) -> None:
        self._splits = {split: self.load(split) for split in splits_needed(self.root, self.trainer)}

    def load(self, split: str) -> Shapes:
        """The objects of `root/split`, of any split that exists; latents are normalised as those of train."""
        shapes = Shapes.of(self.root / split, *self.parts)
        latents = self._latents(split)
        if split != "train" and latents:
            train, own = self._latents("train"), latents
            latents = dict[Part, Latents]()
            for part, one in own.items():
                latents[part] = Latents(values=one.values, mean=train[part].mean, std=train[part].std)
        return Shapes(shards=shapes.shards, parts=self.parts, latents=latents)

    def _latents(self, split: str) -> dict[Part, Latents]:
        found: dict[Part, Latents] = {}
        if self.structure_encoder is None and self.latent_encoder is None:
            return found
        # the networks' modules are not imported where nothing is encoded
        from fewstep.modalities.shape3d.encoding import object_latents, structure_latents

        folder = self.root / split
        if self.structure_encoder is not None:
            encoder = Path(self.structure_encoder)
            found["structure_latents"] = structure_latents(folder, encoder, cache=self.cache)
        if self.latent_encoder is not None:
            found["latents"] = object_latents(folder, Path(self.latent_encoder), cache=self.cache)
        return found

    def train_dataloader(self) -> DataLoader[Batch]:
        part = self._splits["train"]
        batches = StepKeyedBatches.of_trainer(len(part), self.batch_size, self.trainer, seed=self.seed)
        return DataLoader(
            part, batch_sampler=PhrasedBatches(batches), collate_fn=_as_it_is, num_workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        if "val" not in self._splits:
            return []
        part = self._splits["val"]
        batches = spread_batches(len(part), self.val_batches, self.batch_size)
        return DataLoader(part, batch_sampler=batches, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch
