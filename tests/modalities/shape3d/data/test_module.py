"""The Lightning data module of 3D objects."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from fewstep.modalities.shape3d.data.module import ShapeDataModule


def module(root: Path, **options: Any) -> ShapeDataModule:
    data = ShapeDataModule(str(root), ["occupancy", "pictures"], batch_size=4, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_epochs_hold_every_object_once_and_differ_in_order_and_pictures(shapes_root: Path):
    batches = list(islice(iter(module(shapes_root).train_dataloader()), 6))
    numbers = torch.cat([batch["numbers"] for batch in batches]).tolist()
    assert [sorted(numbers[start : start + 6]) for start in range(0, 24, 6)] == [list(range(6))] * 4
    assert numbers[:6] != numbers[6:12]
    pictures = torch.cat([batch["pictures"] for batch in batches])
    seen = [pictures[place] for place, number in enumerate(numbers) if number == 0]
    assert any(not torch.equal(one, seen[0]) for one in seen[1:])


def test_the_same_seed_gives_the_same_batches(shapes_root: Path):
    one, again, other = (next(iter(module(shapes_root, seed=seed).train_dataloader())) for seed in (1, 1, 2))
    assert torch.equal(one["pictures"], again["pictures"])
    assert not torch.equal(one["pictures"], other["pictures"])


class Recorder(LightningModule):
    """Keeps what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(torch.cat([batch["numbers"].float(), batch["pictures"].flatten()]))
        return self.layer(torch.zeros(1, 1)).sum()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Lightning warns of validation data without it."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


def trainer(folder: Path, steps: int) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated", "ignore:.*does not have many workers")
def test_a_resumed_run_goes_on_with_the_next_batch(shapes_root: Path, tmp_path: Path):
    whole = Recorder()
    trainer(tmp_path, 5).fit(whole, ShapeDataModule(str(shapes_root), ["pictures"], batch_size=4))
    first = trainer(tmp_path, 2)
    begun = Recorder()
    first.fit(begun, ShapeDataModule(str(shapes_root), ["pictures"], batch_size=4))
    first.save_checkpoint(tmp_path / "at.ckpt")
    resumed = Recorder()
    data = ShapeDataModule(str(shapes_root), ["pictures"], batch_size=4)
    trainer(tmp_path, 5).fit(resumed, data, ckpt_path=str(tmp_path / "at.ckpt"))
    for one, two in zip(whole.seen, begun.seen + resumed.seen, strict=True):
        assert torch.equal(one, two)


def test_latents_need_their_encoder_and_an_encoder_its_latents(shapes_root: Path):
    with pytest.raises(ValueError, match="give both 'latents' and latent_encoder"):
        ShapeDataModule(str(shapes_root), ["latents"])
    with pytest.raises(ValueError, match="give both 'structure_latents' and structure_encoder"):
        ShapeDataModule(str(shapes_root), ["pictures"], structure_encoder="folder")


def test_validation_walks_over_views_and_backgrounds(shapes_root: Path):
    batches = list(module(shapes_root).val_dataloader())
    assert torch.cat([batch["numbers"] for batch in batches]).tolist() == [0, 1]
    corners = batches[0]["pictures"][:, :, 0, 0]
    assert corners[0].min() > 0
    assert corners[1].max() == 0
