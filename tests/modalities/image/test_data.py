"""Batches of captioned pictures."""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from fewstep.core.training.batches import PhrasedBatches, StepKeyedBatches
from fewstep.modalities.image.caption_features import encode_captions
from fewstep.modalities.image.data import Batch, CaptionedPictures, ImageDataModule
from fewstep.modalities.image.files import load_pictures, write_shard
from fewstep.modalities.video.text import TextEncoder

FEATURES = 4


def encoder(prompts: list[str]) -> Tensor:
    """The number of words, told in as many tokens and two more; padded as long as the longest prompt."""
    lengths = [len(prompt.split()) + 2 for prompt in prompts]
    features = torch.zeros(len(prompts), max(lengths), FEATURES)
    for row, length, prompt in zip(features, lengths, prompts, strict=True):
        row[:length] = length
        row[0, 0] = sum(map(ord, prompt)) % 97 + 1
    return features


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """20 pictures to train on and 6 to validate with; the red of picture i is 10 i."""
    monkeypatch.setattr(TextEncoder, "without_padding", lambda self, prompts: encoder(prompts))
    for split, count in (("train", 20), ("val", 6)):
        entries = [
            (
                f"{number:02d}",
                np.full((8, 8, 3), 10 * number, np.uint8),
                {"captions": [f"picture {number}", f"a long caption of {number}", f"number {number} here"]},
            )
            for number in range(count)
        ]
        write_shard(tmp_path / split / "a.tar", entries)
    return tmp_path


def numbers(batch: Any) -> list[int]:
    return [round((float(row.mean()) + 1) * 127.5 / 10) for row in batch["pixels"]]


def module(root: Path, **options: Any) -> ImageDataModule:
    data = ImageDataModule(str(root), size=8, batch_size=4, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def first(batches: Any, count: int) -> list[Any]:
    return list(islice(iter(batches), count))


def test_batches_hold_pixels_captions_and_features(root: Path):
    batch = first(module(root).train_dataloader(), 1)[0]
    assert batch["pixels"].shape == (4, 3, 8, 8)
    assert batch["pixels"].dtype == torch.float32
    assert batch["features"].shape == batch["null_features"].shape == (4, 32, FEATURES)
    for number, text, row in zip(numbers(batch), batch["captions"], batch["features"], strict=True):
        assert f"{number}" in text.split()
        expected = encoder([text])[0]
        assert torch.equal(row[: len(expected)], expected)
        assert not row[len(expected) :].any()
    assert torch.equal(batch["null_features"][3, :2], encoder([""])[0])


def test_pixels_span_minus_one_to_one(tmp_path: Path):
    extremes = np.zeros((8, 8, 3), np.uint8)
    extremes[4:] = 255
    write_shard(tmp_path / "a.tar", [("a", extremes, {"captions": ["half"]})])
    pixels = CaptionedPictures(load_pictures(tmp_path, size=8))[0, 0]["pixels"]
    assert isinstance(pixels, Tensor)
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert pixels[0, :, 0].tolist() == [[-1.0] * 8] * 3


def test_without_text_features_no_encoder_is_needed(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(TextEncoder, "without_padding")
    batch = first(module(root, text_features=False).train_dataloader(), 1)[0]
    assert set(batch) == {"pixels", "captions"}


def test_an_epoch_shows_every_picture_once_and_the_next_in_another_order(root: Path):
    shown = [numbers(batch) for batch in first(module(root).train_dataloader(), 10)]
    one, two = (list(chain(*part)) for part in (shown[:5], shown[5:]))
    assert sorted(one) == sorted(two) == list(range(20))
    assert one != two


def test_every_phrasing_is_used_and_the_seed_decides_which(root: Path):
    texts = [
        [
            text
            for batch in first(module(root, seed=seed).train_dataloader(), 30)
            for text in batch["captions"]
        ]
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert len(set(texts[0])) > 40


def test_batch_k_follows_from_seed_and_k_alone():
    plain = PhrasedBatches(StepKeyedBatches(20, 4, seed=3))
    later = PhrasedBatches(StepKeyedBatches(20, 4, seed=3, first_batch=7))
    assert first(plain, 9)[7:] == first(later, 2)
    assert plain.batch(7) == later.batch(7)
    assert [number for number, _ in plain.batch(7)] == StepKeyedBatches(20, 4, seed=3).batch(7)


def test_ranks_draw_different_pictures_and_phrasings():
    ranks = [PhrasedBatches(StepKeyedBatches(20, 4, rank=rank, world_size=2)).batch(0) for rank in (0, 1)]
    assert not {number for number, _ in ranks[0]} & {number for number, _ in ranks[1]}
    assert [draw for _, draw in ranks[0]] != [draw for _, draw in ranks[1]]


def test_validation_is_the_same_every_time_and_evenly_spread(root: Path):
    data = module(root, val_batches=1)
    one, two = ([(numbers(batch), batch["captions"]) for batch in data.val_dataloader()] for _ in range(2))
    assert one == two
    assert [number for batch, _ in one for number in batch] == [0, 1, 3, 5]
    everything = [
        number for batch in module(root, val_batches=8).val_dataloader() for number in numbers(batch)
    ]
    assert everything == list(range(6))


class Recorder(LightningModule):
    """Remembers what it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.zeros(())), []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append((numbers(batch), batch["captions"]))
        return self.weight**2

    def validation_step(self, batch: Batch, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated", "ignore:.*does not have many workers")
def test_a_resumed_run_sees_the_pictures_and_captions_that_were_next(root: Path, tmp_path: Path):
    def fit(steps: int, checkpoint: Path | None = None) -> tuple[Recorder, Path]:
        recorder, out = Recorder(), tmp_path / f"run{steps}"
        trainer = Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            enable_checkpointing=False,
        )
        data = ImageDataModule(str(root), size=8, batch_size=4)
        trainer.fit(recorder, data, ckpt_path=None if checkpoint is None else str(checkpoint))
        trainer.save_checkpoint(out / "end.ckpt")
        return recorder, out / "end.ckpt"

    whole, _ = fit(9)
    part, checkpoint = fit(5)
    rest, _ = fit(8, checkpoint)
    assert part.seen + rest.seen == whole.seen[:8]


def test_features_are_kept_between_calls_and_belong_to_their_captions(tmp_path: Path):
    calls: list[list[str]] = []

    def counting(prompts: list[str]) -> Tensor:
        calls.append(prompts)
        return encoder(prompts)

    captions = ["", "three small words", "one", "two words"]
    one = encode_captions(captions, cache=tmp_path, encoder=counting)
    two = encode_captions(captions, cache=tmp_path, encoder=counting)
    assert len(calls) == 1
    everything = torch.arange(4)
    assert torch.equal(one(everything), two(everything))
    assert one.lengths.tolist() == [2, 5, 3, 4]
    for number, text in enumerate(captions):
        assert torch.equal(one(torch.tensor([number]))[0, : one.lengths[number]], encoder([text])[0])
    encode_captions([*captions, "new"], cache=tmp_path, encoder=counting)
    assert len(calls) == 2


def test_a_smaller_width_cuts_long_captions(tmp_path: Path):
    features = encode_captions(["", "three small words"], cache=tmp_path, encoder=encoder, width=3)
    assert features(torch.tensor([1])).shape == (1, 3, FEATURES)
    assert torch.equal(features(torch.tensor([1]))[0], encoder(["three small words"])[0, :3])


@pytest.mark.slow  # loads the sentence encoder
def test_features_are_those_of_the_text_encoder(tmp_path: Path):

    captions = ["", "a blue mug", "a glossy red chair seen from above, on a light green background"]
    features = encode_captions(captions, cache=tmp_path)(torch.arange(3))
    torch.testing.assert_close(features, TextEncoder()(captions), atol=4e-3, rtol=0)


def batches_of(nothing: Path) -> Iterator[Any]:
    return iter(module(nothing).train_dataloader())


def test_wrong_options_are_named(root: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="batch_size=0 and val_batches=8 must be at least 1"):
        ImageDataModule(str(root), batch_size=0)
    with pytest.raises(ValueError, match="width=99 is out of range; use 1 to 32"):
        module(root, text_tokens=99)
    with pytest.raises(ValueError, match="is not a folder"):
        batches_of(tmp_path / "nothing")
