"""Captioned videos as latent clips."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from fewstep.modalities.video.codec import VideoCodec
from fewstep.modalities.video.data import VideoDataModule, load_clips, write_clip
from fewstep.modalities.video.latents import LatentClips, LatentVideoData, encode_videos
from fewstep.modalities.video.model_folder import save_codec

pytestmark = pytest.mark.usefixtures("word_features")

PHRASINGS = (["keep left", "stay left"], ["keep right", "stay right"])
SEGMENTS = [{"start": start, "captions": list(both)} for start, both in zip((0, 7), PHRASINGS, strict=True)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two videos of 12 and 8 frames of 32x32 in each split."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, length in (("00000", 12), ("00001", 8)):
            frames = generator.integers(0, 255, (length, 32, 32, 3), dtype=np.uint8)
            write_clip(tmp_path / split, name, frames, {"segments": SEGMENTS}, fps=12.0)
    return tmp_path


@pytest.fixture
def codec(make_codec: Callable[..., VideoCodec], tmp_path: Path) -> VideoCodec:
    codec = make_codec(dtype=torch.float32)
    save_codec(tmp_path / "codec", codec, training={}, metrics={})
    return codec


def data(root: Path, **settings: Any) -> LatentVideoData:
    return LatentVideoData(
        str(root), str(root / "codec"), **{"size": 32, "clip_frames": 3, "batch_size": 2, **settings}
    )


def numbered(lengths: list[int], frames: int, choices: int = 1) -> LatentClips:
    """Latent frame i is the number i, and so is the feature of its caption."""
    count = sum(lengths)
    return LatentClips(
        latents=torch.arange(float(count)).view(-1, 1, 1, 1),
        lengths=torch.tensor(lengths),
        features=torch.arange(float(1 + count * choices)).view(-1, 1, 1),
        captions=1 + torch.arange(count * choices).view(count, choices),
        frames=frames,
    )


def test_a_clip_is_a_run_of_frames_of_one_video() -> None:
    clips = numbered([5, 2, 4], frames=3)
    runs = [clips[index, 0]["latents"].flatten().tolist() for index in range(len(clips))]
    assert runs == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [7, 8, 9], [8, 9, 10]]


def test_each_frame_carries_its_own_caption_in_one_phrasing_per_clip() -> None:
    clips = numbered([4], frames=3, choices=2)
    drawn = [clips[0, draw]["features"].flatten().tolist() for draw in range(3)]
    assert drawn == [[1, 3, 5], [2, 4, 6], [1, 3, 5]]
    assert clips[0, 0]["null_features"].flatten().tolist() == [0, 0, 0]


def test_videos_shorter_than_a_clip_are_named() -> None:
    with pytest.raises(ValueError, match="no video has 6 latent frames; use longer videos or a smaller"):
        numbered([5, 5], frames=6)


def test_videos_are_encoded_with_the_caption_of_each_latent_frames_last_pixel_frame(
    root: Path, codec: VideoCodec, word_features: Any
) -> None:
    videos = load_clips(root / "train", size=32)
    parts = encode_videos(videos, codec)
    assert parts["lengths"].tolist() == [6, 4]
    pixels = torch.from_numpy(np.concatenate([video.frames for video in videos])).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = codec.encode(pixels[None].float() / 127.5 - 1.0)[0]
    # encoded in bfloat16, which keeps 8 bits: the error is small beside the latents' spread of 1
    assert (parts["latents"].float() - expected).abs().mean() < 0.02 * expected.std()

    texts = ["", *PHRASINGS[0], *PHRASINGS[1]]
    torch.testing.assert_close(parts["features"], word_features(texts).half())
    # frame 7, the first on the right, is the last of latent frame 3
    assert parts["captions"].tolist() == [[1, 2]] * 3 + [[3, 4]] * 3 + [[1, 2]] * 3 + [[3, 4]]


def test_batches_hold_clips_with_captions_per_frame(root: Path, codec: VideoCodec) -> None:
    module = data(root)
    module.prepare_data()
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "latents": (2, 3, 4, 4, 4),
        "features": (2, 3, 4, 8),
        "null_features": (2, 3, 4, 8),
    }
    assert all(value.dtype == torch.float32 for value in batch.values())


def test_validation_spreads_over_the_whole_set_in_the_same_order(root: Path, codec: VideoCodec) -> None:
    module = data(root, val_batches=2)
    module.setup("validate")
    first, second = ([batch["latents"] for batch in module.val_dataloader()] for _ in range(2))
    assert sum(map(len, first)) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    clips = LatentClips(**module._load("val"), frames=3)
    assert torch.equal(first[0][0], clips[0, 0]["latents"])
    assert torch.equal(first[-1][-1], clips[len(clips) - 1, 0]["latents"])


def test_encoding_is_done_once_until_codec_or_videos_change(
    root: Path, codec: VideoCodec, make_codec: Callable[..., VideoCodec], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stored() -> int:
        return len(list(root.glob("latents-train-*.safetensors")))

    data(root).setup("fit")
    assert stored() == 1
    with monkeypatch.context() as patch:
        patch.setattr(
            "fewstep.modalities.video.latents.encode_videos", lambda *_: pytest.fail("encoded again")
        )
        data(root).setup("fit")
    save_codec(root / "codec", make_codec(seed=1, dtype=torch.float32), training={}, metrics={})
    data(root).setup("fit")
    assert stored() == 2
    sidecar = root / "train" / "00001.json"
    sidecar.write_text(sidecar.read_text().replace("left", "ahea"))  # no longer than it was
    data(root).setup("fit")
    assert stored() == 3
    (root / "train" / "00001.mp4").unlink()
    data(root).setup("fit")
    assert stored() == 4


def test_a_resumed_run_and_other_ranks_see_their_own_clips_and_phrasings(
    root: Path, codec: VideoCodec, place_in_run: Callable[..., Trainer]
) -> None:
    def batches(first: int, rank: int = 0, world_size: int = 1) -> list[dict[str, torch.Tensor]]:
        torch.manual_seed(first)  # what another place of the run has drawn
        module = data(root)
        module.trainer = place_in_run(first, rank, world_size)
        module.setup("fit")
        return list(islice(module.train_dataloader(), 6 - first))

    whole, resumed = batches(0), batches(3)
    for before, after in zip(whole[3:], resumed, strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)
    ranks = [batches(0, rank, 2) for rank in (0, 1)]
    assert not torch.equal(ranks[0][0]["latents"], ranks[1][0]["latents"])


def test_a_missing_validation_set_is_missed_only_where_something_is_validated(
    root: Path, codec: VideoCodec, place_in_run: Callable[..., Trainer]
) -> None:
    (root / "val").rename(root / "kept")
    modules = data(root), VideoDataModule(str(root), clip_frames=3, size=32)
    for module in modules:
        with pytest.raises(ValueError, match="val is not a folder; make it and put videos with captions"):
            module.prepare_data()
        module.trainer = place_in_run(0, 0, 1)
        module.trainer.limit_val_batches = 0
        module.prepare_data()
        module.setup("fit")
        assert module.val_dataloader() == []
