"""Captioned pictures as training batches: pixels, one phrasing of each caption, and its text features."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fewstep.core.training.batches import (
    PhrasedBatches,
    Pick,
    StepKeyedBatches,
    splits_needed,
    spread_batches,
)
from fewstep.modalities.image.caption_features import CaptionFeatures, encode_captions
from fewstep.modalities.image.files import Pictures, load_pictures
from fewstep.modalities.video.text import TEXT_TOKENS

Batch = dict[str, Tensor | list[str]]


class CaptionedPictures(Dataset[Batch]):
    """Pictures with their captions; whole batches are read at once.

    An item of a batch is a pair: the number of a picture, and any non-negative number, which taken modulo the
    picture's captions chooses one.

    Args:
        pictures: as `load_pictures` gives them.
        features: features of `captions`, in the same order; None leaves them out of the batches.
    """

    def __init__(self, pictures: Pictures, features: CaptionFeatures | None = None) -> None:
        self.pictures, self.features = pictures, features
        self.captions = distinct_captions(pictures)
        self._number = {text: number for number, text in enumerate(self.captions)}

    def __len__(self) -> int:
        return len(self.pictures.labels)

    def __getitem__(self, pick: Pick) -> Batch:
        return self.__getitems__([pick])

    def __getitems__(self, picks: list[Pick]) -> Batch:
        """A batch.

        Returns:
            ``pixels`` ``[B, 3, size, size]`` in [-1, 1], ``captions`` a list of B texts and, where features
            were given, ``features`` and ``null_features``, both ``[B, L, D]``.
        """
        numbers = [number for number, _ in picks]
        texts = [
            captions[draw % len(captions)]
            for captions, (_, draw) in ((self.pictures.labels[pick[0]].captions, pick) for pick in picks)
        ]
        pixels = torch.from_numpy(self.pictures.pixels[numbers]).permute(0, 3, 1, 2)
        batch: Batch = {"pixels": pixels.float() / 127.5 - 1, "captions": texts}
        if self.features is not None:
            chosen = torch.tensor([self._number[text] for text in texts])
            batch["features"] = self.features(chosen)
            batch["null_features"] = self.features(torch.zeros(1, dtype=torch.int64)).expand(
                len(picks), -1, -1
            )
        return batch


def distinct_captions(pictures: Pictures) -> list[str]:
    """Every caption of the pictures once, in the order of their first use; the empty one comes first."""
    return list(dict.fromkeys(["", *(text for label in pictures.labels for text in label.captions)]))


class ImageDataModule(LightningDataModule):
    """The pictures in `root/train` and `root/val`, decoded once into memory-mapped files.

    `root/val` may be missing where nothing is validated (`trainer.limit_val_batches: 0`).

    The training loader is endless and continues exactly after a resume: set `trainer.max_steps`, and on
    several devices `trainer.use_distributed_sampler: false`.

    Args:
        root: folder with the folders `train` and `val`, as `load_pictures` reads them.
        size: edge of the square pictures in pixels.
        batch_size: pictures per batch on each device.
        val_batches: batches of the validation set, evenly spread over it.
        text_features: whether batches hold features of the captions by the bundled sentence encoder.
        text_tokens: tokens that captions are padded or cut to.
        seed: key of the order of pictures and of the choice of captions.
        num_workers: processes that gather batches; 0 suits pictures that are decoded already.
        cache: folder for decoded pixels and for features, `root` by default.
    """

    def __init__(
        self,
        root: str,
        size: int = 64,
        batch_size: int = 64,
        val_batches: int = 8,
        text_features: bool = True,
        text_tokens: int = TEXT_TOKENS,
        seed: int = 0,
        num_workers: int = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or val_batches < 1:
            raise ValueError(f"batch_size={batch_size} and val_batches={val_batches} must be at least 1")
        self.root, self.cache = Path(root), Path(root if cache is None else cache)
        self.size, self.batch_size, self.val_batches = size, batch_size, val_batches
        self.text_features, self.text_tokens = text_features, text_tokens
        self.seed, self.num_workers = seed, num_workers
        self._parts: dict[str, CaptionedPictures] = {}

    def prepare_data(self) -> None:
        for split in splits_needed(self.root, self.trainer):
            self.load(split)

    def setup(self, stage: str) -> None:
        self._parts = {split: self.load(split) for split in splits_needed(self.root, self.trainer)}

    def load(self, split: str) -> CaptionedPictures:
        """The pictures of `root/split`, of any split that exists, with features if asked for."""
        pictures = load_pictures(self.root / split, size=self.size, cache=self.cache)
        if not self.text_features:
            return CaptionedPictures(pictures)
        captions = distinct_captions(pictures)
        return CaptionedPictures(
            pictures, encode_captions(captions, cache=self.cache, width=self.text_tokens)
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        part = self._parts["train"]
        batches = StepKeyedBatches.of_trainer(len(part), self.batch_size, self.trainer, seed=self.seed)
        return DataLoader(
            part, batch_sampler=PhrasedBatches(batches), collate_fn=_as_it_is, num_workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        if "val" not in self._parts:
            return []
        part = self._parts["val"]
        batches = spread_batches(len(part), self.val_batches, self.batch_size)
        return DataLoader(part, batch_sampler=batches, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch
