"""Folders of captioned videos."""

import json
import os
import weakref
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from fewstep.modalities.video import files
from fewstep.modalities.video.data import (
    VideoDataModule,
    VideoFolder,
    load_clips,
    write_clip,
)
from fewstep.modalities.video.files import Decoder, decode_video, resampled_indices, write_video


def ramp(frames: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Frame k is of grey level 10 k, so a decoded frame tells its own number."""
    return np.broadcast_to(
        10 * np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, height, width, 3)
    )


def numbers(frames) -> list[int]:
    return [round(float(frame.mean()) / 10) for frame in np.asarray(frames, dtype=np.float64)]


SEGMENTS = [
    {"start": 0, "captions": ["keep left", "stay left"], "attributes": {"manoeuvre": "left"}},
    {"start": 6, "captions": ["keep right", "stay right"], "heldout_captions": ["stick to the right"]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clip(tmp_path, "00000", ramp(10), {"segments": SEGMENTS, "speed": list(range(10))}, fps=12.0)
    write_video(tmp_path / "other.mp4", ramp(7), fps=12.0)
    (tmp_path / "other.txt").write_text("a ramp\nof grey\n")
    return tmp_path


def test_clips_come_with_frames_segments_and_truth(folder: Path):
    first, second = load_clips(folder, size=32)
    assert (first.name, second.name) == ("00000", "other")
    assert numbers(first.frames) == list(range(10))
    assert first.fps == 12.0
    assert first.segment_at(5).captions == ("keep left", "stay left")
    assert first.segment_at(6).heldout_captions == ("stick to the right",)
    assert first.attributes[0] == {"manoeuvre": "left"}
    assert first.speed is not None
    assert first.speed.tolist() == list(range(10))
    assert first.lane_offset is None
    assert second.segments[0].captions == ("a ramp of grey",)


def test_the_same_frames_are_the_same_file(tmp_path: Path):
    draws = np.random.default_rng(1)
    scene = draws.integers(0, 256, (12, 70, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    frames = [scene[:, 3 * number : 3 * number + 160] for number in range(50)]
    written = set()
    for _ in range(12):
        freed = [draws.integers(0, 256, draws.integers(1, 3_000_000), np.uint8) for _ in range(3)]
        del freed[1]  # what freed memory holds must not matter
        write_video(tmp_path / "clip.mp4", frames, fps=12.0)
        written.add((tmp_path / "clip.mp4").read_bytes())
    assert len(written) == 1


def test_two_commands_that_write_one_clip_do_not_write_into_each_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The other one comes when this one's video is half written, and is ahead of it."""

    whole = files.write_video

    def halves() -> Iterator[np.ndarray]:
        for number, frame in enumerate(ramp(10)):
            if number == 5:
                with monkeypatch.context() as other:
                    other.setattr(os, "getpid", lambda: 1)
                    other.setattr("fewstep.modalities.video.data.write_video", whole)
                    write_clip(tmp_path, "00000", ramp(10), {"segments": SEGMENTS}, fps=12.0)
            yield frame

    def half_and_other(path: Path, _: np.ndarray, *, fps: float) -> None:
        whole(path, halves(), fps=fps)

    monkeypatch.setattr("fewstep.modalities.video.data.write_video", half_and_other)
    write_clip(tmp_path, "00000", ramp(10), {"segments": SEGMENTS}, fps=12.0)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["00000.json", "00000.mp4"]
    assert numbers(load_clips(tmp_path)[0].frames) == list(range(10))


def test_both_decoders_give_the_same_frames(folder: Path):
    pytest.importorskip("decord")
    for ours, theirs in zip(
        load_clips(folder, size=32, decoder="av"), load_clips(folder, size=32, decoder="decord"), strict=True
    ):
        assert np.array_equal(ours.frames, theirs.frames)
        assert ours.fps == theirs.fps


def test_the_cache_is_written_once_and_gives_the_same_frames(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
):
    cache = tmp_path_factory.mktemp("cache")
    direct, written, mapped = (load_clips(folder, size=32, cache=path) for path in (None, cache, cache))
    for one, two, three in zip(direct, written, mapped, strict=True):
        assert np.array_equal(one.frames, two.frames)
        assert np.array_equal(one.frames, three.frames)
    assert len(list(cache.glob("*.raw"))) == 1
    assert not list(cache.glob("*.part"))


def test_a_folder_that_was_moved_is_not_decoded_again(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    cache = tmp_path_factory.mktemp("cache")
    load_clips(folder, size=32, cache=cache)
    load_clips(folder.rename(folder.parent / "moved"), size=32, cache=cache)
    assert len(list(cache.glob("*.raw"))) == 1


def test_a_changed_video_is_decoded_anew(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    cache = tmp_path_factory.mktemp("cache")
    load_clips(folder, size=32, cache=cache)
    write_video(folder / "other.mp4", ramp(4), fps=12.0)
    assert len(load_clips(folder, size=32, cache=cache)[1].frames) == 4


def test_other_sizes_are_scaled_and_cut_from_the_centre(tmp_path: Path):
    frames = np.zeros((2, 32, 64, 3), dtype=np.uint8)
    frames[:, :, 16:48] = 200
    write_video(tmp_path / "wide.mp4", frames, fps=8.0)
    (tmp_path / "wide.txt").write_text("a bar")
    square = load_clips(tmp_path, size=16)[0].frames
    assert square.shape == (2, 16, 16, 3)
    assert square[:, :, 1:-1].min() > 190
    assert load_clips(tmp_path, size=(16, 32))[0].frames.shape == (2, 16, 32, 3)


def test_resampling_moves_frames_segments_and_truth_together(folder: Path):
    halved = load_clips(folder, size=32, fps=6.0)[0]
    assert numbers(halved.frames) == [0, 2, 4, 6, 8]
    assert [segment.start for segment in halved.segments] == [0, 3]
    assert halved.speed is not None
    assert halved.speed.tolist() == [0, 2, 4, 6, 8]
    assert halved.fps == 6.0
    assert resampled_indices(3, 2.0).tolist() == [0, 0, 1, 1, 2, 2]


def test_windows_carry_the_caption_of_each_frame_and_keep_one_phrasing(folder: Path):
    data = VideoFolder(load_clips(folder, size=32), clip_frames=4)
    assert len(data) == 7 + 4
    item = data[4, 0]
    assert item["frames"].dtype == torch.uint8
    assert item["frames"].shape == (4, 3, 32, 32)
    assert numbers(item["frames"]) == [4, 5, 6, 7]
    seen = [[data.captions[index] for index in data[4, draw]["captions"].tolist()] for draw in (0, 1, 2)]
    keep, stay = (
        [f"{verb} {side}" for side in ("left", "left", "right", "right")] for verb in ("keep", "stay")
    )
    assert seen == [keep, stay, keep]


def test_the_data_module_serves_batches_of_both_splits(tmp_path: Path):
    for split in ("train", "val"):
        write_clip(tmp_path / split, "00000", ramp(12), {"segments": SEGMENTS}, fps=12.0)
    module = VideoDataModule(str(tmp_path), clip_frames=3, size=32, batch_size=2, val_batches=2)
    module.prepare_data()
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch["frames"].shape == (2, 3, 3, 32, 32)
    assert batch["captions"].shape == (2, 3)
    starts = [numbers(row)[0] for batch in module.val_dataloader() for row in batch["frames"]]
    assert starts == [0, 3, 6, 9]


def test_windows_continue_after_a_resume_and_differ_between_ranks(
    tmp_path: Path, place_in_run: Callable[..., Trainer]
):
    for split in ("train", "val"):
        write_clip(tmp_path / split, "00000", ramp(12), {"segments": SEGMENTS}, fps=12.0)

    def starts(first: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
        torch.manual_seed(first)  # what another place of the run has drawn
        module = VideoDataModule(str(tmp_path), clip_frames=3, size=32, batch_size=2)
        module.trainer = place_in_run(first, rank, world_size)
        module.setup("fit")
        batches = islice(module.train_dataloader(), 8 - first)
        return [
            [*numbers(batch["frames"].flatten(0, 1)), *batch["captions"].flatten().tolist()]
            for batch in batches
        ]

    assert starts(5) == starts(0)[5:]
    assert starts(0, 0, 2) != starts(0, 1, 2)


def test_an_unfinished_clip_is_not_read(folder: Path):
    (folder / ".00001.mp4.part").write_bytes(b"half a video")
    assert len(load_clips(folder, size=32)) == 2


def test_windows_longer_than_every_video_are_refused(folder: Path):
    with pytest.raises(ValueError, match="clip_frames=11 is longer than every video; use at most 10"):
        VideoFolder(load_clips(folder, size=32), clip_frames=11)


def test_a_missing_caption_is_one_clear_line(folder: Path):
    (folder / "other.txt").unlink()
    with pytest.raises(ValueError, match=r"other.mp4 has no captions; put other.txt or other.json beside it"):
        load_clips(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold an object"),
        ("{}", "broken segments"),
        (json.dumps({"segments": [{"start": 0, "captions": []}]}), "broken segments"),
        (json.dumps({"segments": [{"start": 0, "captions": [" "]}]}), "broken segments"),
        (json.dumps({"segments": [{"start": 3, "captions": ["a"]}]}), "must begin at 0 and rise"),
        (
            json.dumps({"segments": [{"start": 0, "captions": ["a"]}], "speed": [1]}),
            "give one per frame or none",
        ),
    ],
)
def test_a_broken_sidecar_is_one_clear_line(folder: Path, text: str, message: str):
    (folder / "00000.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_clips(folder, size=32)
    assert "\n" not in str(caught.value)
    assert "00000.json" in str(caught.value)


def test_what_decord_cannot_read_is_read_without_it(tmp_path: Path) -> None:
    """48 pixels wide: decord stumbles over the ends of its rows."""
    pytest.importorskip("decord")
    video, frames = tmp_path / "narrow.mp4", np.full((3, 32, 48, 3), 90, np.uint8)
    write_video(video, frames, fps=12.0)
    with pytest.raises(ValueError, match=r"narrow.mp4 cannot be decoded"):
        decode_video(video, height=32, width=48, fps=None, decoder="decord")
    found = decode_video(video, height=32, width=48, fps=None, decoder="auto")[0]
    assert np.abs(found.astype(int) - frames).max() < 4


@pytest.mark.parametrize("decoder", ["av", "decord"])
@pytest.mark.parametrize("fps", [None, 12.0, 5.0, 30.0])
@pytest.mark.parametrize("last", [1, 7, 20, 100])
def test_the_last_frames_are_those_at_the_end_of_all(
    tmp_path: Path, decoder: Decoder, fps: float | None, last: int
):
    pytest.importorskip(decoder)
    write_video(tmp_path / "ramp.mp4", ramp(25), fps=12.0)
    options = {"height": 32, "width": 32, "fps": fps, "decoder": decoder}
    whole = decode_video(tmp_path / "ramp.mp4", **options)[0]
    assert np.array_equal(decode_video(tmp_path / "ramp.mp4", **options, last=last)[0], whole[-last:])


def test_a_long_video_is_never_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nor are its frames kept in their own size, which is that of a telephone's camera."""
    write_video(tmp_path / "long.mp4", ramp(200, 64, 64), fps=12.0)
    alive: list[weakref.ref[np.ndarray]] = []
    most = [0]
    upright = files._upright

    def counted(frame: Any) -> np.ndarray:
        array = upright(frame)
        alive.append(weakref.ref(array))
        most[0] = max(most[0], sum(one() is not None for one in alive))
        return array

    monkeypatch.setattr(files, "_upright", counted)
    found = decode_video(tmp_path / "long.mp4", height=16, width=16, fps=None, decoder="av", last=5)[0]
    assert len(found) == 5
    assert most[0] <= 2 * files.DECODE_FRAMES


def test_a_video_filmed_upright_is_seen_upright(tmp_path: Path):
    """Left is what the file says is turned to the top, a quarter clockwise."""
    frames = np.zeros((3, 32, 64, 3), np.uint8)
    frames[:, :, :32] = 255
    write_video(tmp_path / "flat.mp4", frames, fps=12.0)
    content = (tmp_path / "flat.mp4").read_bytes()
    one, zero, end = (0x10000).to_bytes(4, "big"), bytes(4), (0x40000000).to_bytes(4, "big")
    flat = one + 3 * zero + one + 3 * zero + end
    turned = zero + one + zero + (-0x10000).to_bytes(4, "big", signed=True) + 4 * zero + end
    head, track = content.split(b"tkhd")
    (tmp_path / "upright.mp4").write_bytes(head + b"tkhd" + track.replace(flat, turned, 1))
    found = decode_video(tmp_path / "upright.mp4", height=64, width=32, fps=None, decoder="av")[0]
    assert found[:, :30].min() > 200
    assert found[:, 34:].max() < 50


@pytest.mark.parametrize("decoder", ["av", "decord"])
def test_a_broken_video_is_one_clear_line(folder: Path, decoder):
    pytest.importorskip(decoder)
    (folder / "other.mp4").write_bytes(b"not a video")
    with pytest.raises(ValueError, match=r"other.mp4 cannot be decoded; re-encode it or remove it"):
        load_clips(folder, decoder=decoder)


def test_a_folder_without_videos_or_none_at_all_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no video"):
        load_clips(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        load_clips(tmp_path / "nowhere")
