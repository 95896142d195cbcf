"""Training of the classifier that measures generated pictures."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from fewstep.core.training.batches import StepKeyedBatches
from fewstep.core.training.run_folder import export_record
from fewstep.core.training.schedules import warmup_cosine
from fewstep.modalities.image.classifier import (
    HEADS,
    SIZE,
    AttributeClassifier,
    ClassifierConfig,
    labels_of,
    save_classifier,
)
from fewstep.modalities.image.files import Pictures, load_pictures

Batch = dict[str, Tensor]
SHIFT = 3  # pixels, each way


class AttributeTraining(LightningModule):
    """Cross-entropy of all attributes of ``pixels`` ``[B, 3, 64, 64]`` against ``labels`` ``[B, head]``.

    Pictures are shifted, blurred and noised a little, so that the traces of an autoencoder are not read as
    another object.

    Args:
        classifier: sizes of the network.
        learning_rate: peak of a warm-up and cosine schedule over the trainer's ``max_steps``.
        noise: largest standard deviation of the noise, in units of pixels from -1 to 1.
        label_smoothing: of the cross-entropy.
    """

    def __init__(
        self,
        classifier: ClassifierConfig,
        learning_rate: float = 2e-3,
        noise: float = 0.06,
        label_smoothing: float = 0.05,
    ) -> None:
        super().__init__()
        # torch's types lack this overload
        network = AttributeClassifier(classifier)
        self.classifier = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.learning_rate = learning_rate
        self.noise, self.label_smoothing = noise, label_smoothing

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self.classifier(self._varied(batch["pixels"]))
        losses = {
            name: F.cross_entropy(logits[name], batch["labels"][:, n], label_smoothing=self.label_smoothing)
            for n, name in enumerate(HEADS)
        }
        for name in ("category", "colour"):
            self.log(f"loss/{name}", losses[name].detach())
        loss = torch.stack(list(losses.values())).sum()
        self.log("loss/attributes", loss.detach())
        return loss

    def _varied(self, pixels: Tensor) -> Tensor:
        offset = torch.randint(2 * SHIFT + 1, (2,)).tolist()
        padded = F.pad(pixels, (SHIFT,) * 4, mode="replicate")
        shifted = padded[..., offset[0] : offset[0] + SIZE, offset[1] : offset[1] + SIZE]
        share, sigma = torch.rand(2, len(pixels), 1, 1, 1, device=pixels.device)
        blurred = F.avg_pool2d(shifted, 3, stride=1, padding=1, count_include_pad=False)
        return shifted + share * (blurred - shifted) + self.noise * sigma * torch.randn_like(shifted)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        split = ("val", "val/heldout")[dataloader_idx]
        logits = self.classifier(batch["pixels"])
        for number, name in enumerate(HEADS):
            right = (logits[name].argmax(1) == batch["labels"][:, number]).float().mean()
            self.log(f"{split}/{name}", right, batch_size=len(batch["labels"]), add_dataloader_idx=False)

    def on_train_end(self) -> None:
        training, metrics = export_record(self.trainer)
        folder = Path(self.trainer.default_root_dir) / "model"
        save_classifier(folder, self.classifier, training=training, metrics=metrics)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.classifier.parameters(), self.learning_rate, betas=(0.9, 0.95), weight_decay=0.02
        )
        return warmup_cosine(optimizer, int(self.trainer.estimated_stepping_batches))


class AttributePictures(Dataset[Batch]):
    """Pictures with the numbers of their attributes; whole batches are read at once."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures
        self.labels = torch.stack([labels_of(label.attributes) for label in pictures.labels])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> Batch:
        return self.__getitems__([number])

    def __getitems__(self, numbers: list[int]) -> Batch:
        """A batch: ``pixels`` ``[B, 3, size, size]`` in [-1, 1], ``labels`` ``[B, head]``."""
        pixels = torch.from_numpy(self.pictures.pixels[numbers]).permute(0, 3, 1, 2)
        return {"pixels": pixels.float() / 127.5 - 1, "labels": self.labels[numbers]}


class AttributeDataModule(LightningDataModule):
    """The rendered pictures of `root/train`, `root/val` and `root/heldout` with their attributes.

    The training loader is endless and continues exactly after a resume: set `trainer.max_steps`.

    Args:
        root: folder that ``fewstep render --world objects`` filled.
        batch_size: pictures per batch on each device.
        seed: key of the order of pictures.
    """

    def __init__(self, root: str, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.root, self.batch_size, self.seed = Path(root), batch_size, seed
        self._parts: dict[str, AttributePictures] = {}

    def setup(self, stage: str) -> None:
        splits = ["train", "val", *(["heldout"] if (self.root / "heldout").is_dir() else [])]
        self._parts = {
            split: AttributePictures(
                load_pictures(self.root / split, size=SIZE, cache=self.root if split != "heldout" else None)
            )
            for split in splits
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        part = self._parts["train"]
        batches = StepKeyedBatches.of_trainer(len(part), self.batch_size, self.trainer, seed=self.seed)
        return DataLoader(part, batch_sampler=batches, collate_fn=_as_it_is)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        return [
            DataLoader(
                part,
                batch_sampler=[rows.tolist() for rows in torch.arange(len(part)).split(self.batch_size)],
                collate_fn=_as_it_is,
            )
            for split, part in self._parts.items()
            if split != "train"
        ]


def _as_it_is(batch: Any) -> Any:
    return batch
