"""Captioned videos: a folder of video files with sidecars, read as clips and served to a trainer."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
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
from fewstep.modalities.video.files import Decoder, decode_once, decode_video, resampled_indices, write_video

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of a clip from frame `start` to the next segment, with several phrasings of one caption."""

    start: int
    captions: tuple[str, ...]
    heldout_captions: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A decoded video; `lane_offset` and `speed` are the true values of a rendered drive, else None."""

    name: str
    frames: UInt8[np.ndarray, " frame height width 3"]
    fps: float
    segments: tuple[Segment, ...]
    lane_offset: Float[np.ndarray, " frame"] | None = None
    speed: Float[np.ndarray, " frame"] | None = None

    def segment_at(self, frame: int) -> Segment:
        """The segment that a frame belongs to."""
        return [segment for segment in self.segments if segment.start <= frame][-1]

    @property
    def attributes(self) -> list[dict[str, str]]:
        """The attributes of every frame."""
        return [self.segment_at(frame).attributes for frame in range(len(self.frames))]


def load_clips(
    folder: Path | str,
    *,
    size: int | tuple[int, int] = 96,
    fps: float | None = None,
    cache: Path | str | None = None,
    decoder: Decoder = "auto",
) -> list[Clip]:
    """Reads every video of `folder` with its captions.

    Beside NAME.mp4 lies NAME.json, `{"segments": [{"start": 0, "captions": ["...", ...]}, ...]}` with starts
    in frames of the video, or NAME.txt with one caption for the whole video.

    Args:
        size: height and width of the frames, or one number for both; videos are scaled and centre-cropped.
        fps: frame rate to resample to by dropping or repeating frames; None keeps each video's own.
        cache: folder for decoded frames. With it each video is decoded once, later calls map the frames from
            disk, and frames need no memory of their own.
        decoder: "decord", "av", or "auto" for decord where it is installed.
    """
    folder = Path(folder)
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size={size} is not positive; use for example 96 or (480, 832)")
    if fps is not None and fps <= 0:
        raise ValueError(f"fps={fps} is not positive; use for example 12.0, or None")
    videos = _videos(folder)
    sidecars = [_read_sidecar(video) for video in videos]
    if cache is None:
        decoded = [
            decode_video(video, height=height, width=width, fps=fps, decoder=decoder) for video in videos
        ]
    else:
        decoded = decode_once(videos, height=height, width=width, fps=fps, decoder=decoder, cache=Path(cache))
    clips = []
    for video, sidecar, (frames, source_fps) in zip(videos, sidecars, decoded, strict=True):
        clips.append(_clip(video, sidecar, frames, source_fps, fps))
    return clips


class VideoFolder(Dataset[dict[str, Tensor]]):
    """Windows of `clip_frames` consecutive frames, one every `stride` frames of every clip.

    An item holds `frames` and, per frame, `captions`: indices into the list `captions` of this data set. It
    is a pair: the number of a window, and any non-negative number, which taken modulo a segment's phrasings
    chooses one, so that a caption changes only where the segment does.
    """

    def __init__(self, clips: list[Clip], *, clip_frames: int, stride: int = 1) -> None:
        if clip_frames < 1 or stride < 1:
            raise ValueError(f"clip_frames={clip_frames} and stride={stride} must both be at least 1")
        self.clips, self.clip_frames = clips, clip_frames
        self.windows = [
            (number, start)
            for number, clip in enumerate(clips)
            for start in range(0, len(clip.frames) - clip_frames + 1, stride)
        ]
        if not self.windows:
            longest = max((len(clip.frames) for clip in clips), default=0)
            raise ValueError(f"clip_frames={clip_frames} is longer than every video; use at most {longest}")
        texts = [text for clip in clips for segment in clip.segments for text in segment.captions]
        self.captions = list(dict.fromkeys(texts))
        self._index = {text: index for index, text in enumerate(self.captions)}

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, pick: Pick) -> dict[str, Tensor]:
        window, draw = pick
        number, start = self.windows[window]
        clip = self.clips[number]
        frames: UInt8[Tensor, " frame 3 height width"] = torch.from_numpy(
            np.ascontiguousarray(clip.frames[start : start + self.clip_frames].transpose(0, 3, 1, 2))
        )
        captions: Int64[Tensor, " frame"] = torch.tensor(
            [self._caption(clip, frame, draw) for frame in range(start, start + self.clip_frames)]
        )
        return {"frames": frames, "captions": captions}

    def _caption(self, clip: Clip, frame: int, draw: int) -> int:
        phrasings = clip.segment_at(frame).captions
        return self._index[phrasings[draw % len(phrasings)]]


class VideoDataModule(LightningDataModule):
    """Windows of the videos in `root/train` and `root/val`, decoded once into memory-mapped files.

    `root/val` may be missing where nothing is validated (`trainer.limit_val_batches: 0`).

    The training loader is endless and continues exactly after a resume: set `trainer.max_steps`, and on
    several devices `trainer.use_distributed_sampler: false`.

    Args:
        root: folder with the folders `train` and `val`, as `load_clips` reads them.
        clip_frames: frames per window.
        size: height and width of the frames, or one number for both.
        batch_size: windows per batch.
        fps: frame rate to resample to; None keeps each video's own.
        val_batches: batches of the validation set, evenly spread over it.
        num_workers: processes that cut windows; 0 suits machines whose cores are busy training.
        cache: folder for the decoded frames, `root` by default.
    """

    def __init__(
        self,
        root: str,
        clip_frames: int = 8,
        size: int | tuple[int, int] = 96,
        batch_size: int = 8,
        fps: float | None = None,
        val_batches: int = 8,
        num_workers: int = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        self.root, self.cache = Path(root), Path(root if cache is None else cache)
        self.clip_frames, self.size, self.batch_size, self.fps = clip_frames, size, batch_size, fps
        self.val_batches, self.num_workers = val_batches, num_workers
        self._parts: dict[str, VideoFolder] = {}

    def prepare_data(self) -> None:
        for split in splits_needed(self.root, self.trainer):
            self._load(split)

    def setup(self, stage: str) -> None:
        strides = {"train": 1, "val": self.clip_frames}
        self._parts = {
            split: VideoFolder(self._load(split), clip_frames=self.clip_frames, stride=strides[split])
            for split in splits_needed(self.root, self.trainer)
        }

    def train_dataloader(self) -> DataLoader:
        part = self._parts["train"]
        batches = StepKeyedBatches.of_trainer(len(part), self.batch_size, self.trainer)
        return DataLoader(part, batch_sampler=PhrasedBatches(batches), num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader | list[Any]:
        if "val" not in self._parts:
            return []
        part = self._parts["val"]
        return DataLoader(part, batch_sampler=spread_batches(len(part), self.val_batches, self.batch_size))

    def _load(self, split: str) -> list[Clip]:
        return load_clips(self.root / split, size=self.size, fps=self.fps, cache=self.cache)


def write_clip(
    folder: Path,
    name: str,
    frames: UInt8[np.ndarray, " frame height width 3"],
    record: dict[str, Any],
    *,
    fps: float,
) -> None:
    """Writes `name`.json, then `name`.mp4, each complete or not at all, so no reader sees half a clip, and
    two commands that write the same one do not write into each other's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sidecar, video = (folder / f".{name}.{os.getpid()}{suffix}.part" for suffix in (".json", ".mp4"))
    try:
        sidecar.write_text(json.dumps({"fps": fps, **record}), encoding="utf-8")
        os.replace(sidecar, folder / f"{name}.json")
        write_video(video, frames, fps=fps)
        os.replace(video, folder / f"{name}.mp4")
    finally:
        sidecar.unlink(missing_ok=True)
        video.unlink(missing_ok=True)


def _videos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; make it and put videos with captions there")
    videos = sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    if not videos:
        raise ValueError(f"{folder} holds no video; put {', '.join(VIDEO_SUFFIXES)} files there")
    return videos


def _read_sidecar(video: Path) -> dict[str, Any]:
    structured, plain = video.with_suffix(".json"), video.with_suffix(".txt")
    if structured.exists():
        try:
            record = json.loads(structured.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{structured} is not JSON ({error}); write it anew") from error
        if not isinstance(record, dict):
            raise ValueError(f'{structured} must hold an object; use {{"segments": [...]}}')
        return record
    if plain.exists():
        caption = " ".join(plain.read_text(encoding="utf-8").split())
        if not caption:
            raise ValueError(f"{plain} is empty; write one caption into it")
        return {"segments": [{"start": 0, "captions": [caption]}]}
    raise ValueError(f"{video} has no captions; put {plain.name} or {structured.name} beside it")


def _segments(video: Path, record: dict[str, Any], scale: float) -> tuple[Segment, ...]:
    broken = (
        f'{video.with_suffix(".json")} has broken segments; use [{{"start": 0, "captions": ["..."]}}, ...]'
    )
    entries = record.get("segments")
    if not isinstance(entries, list) or not entries:
        raise ValueError(broken)
    segments = []
    for entry in entries:
        captions = entry.get("captions") if isinstance(entry, dict) else None
        start = entry.get("start") if isinstance(entry, dict) else None
        if not isinstance(start, int) or not isinstance(captions, list) or not captions:
            raise ValueError(broken)
        if not all(isinstance(text, str) and text.strip() for text in captions):
            raise ValueError(broken)
        segments.append(
            Segment(
                start=round(start * scale),
                captions=tuple(captions),
                heldout_captions=tuple(entry.get("heldout_captions", ())),
                attributes=dict(entry.get("attributes", {})),
            )
        )
    starts = [segment.start for segment in segments]
    if starts[0] != 0 or starts != sorted(starts):
        raise ValueError(f"{broken}; starts {starts} must begin at 0 and rise")
    return tuple(segments)


def _clip(
    video: Path,
    record: dict[str, Any],
    frames: UInt8[np.ndarray, " frame height width 3"],
    source_fps: float,
    fps: float | None,
) -> Clip:
    scale = 1.0 if fps is None else fps / source_fps
    truth: dict[str, np.ndarray] = {}
    for name in ("lane_offset", "speed"):
        if name in record:
            values = np.asarray(record[name], dtype=np.float64)
            truth[name] = values[resampled_indices(len(values), scale)]
            if truth[name].shape != (len(frames),):
                raise ValueError(
                    f"{video.with_suffix('.json')} has {truth[name].shape} values of {name} "
                    f"for {len(frames)} frames; give one per frame or none"
                )
    return Clip(
        name=video.stem,
        frames=frames,
        fps=source_fps if fps is None else fps,
        segments=_segments(video, record, scale),
        **truth,
    )
