"""`fewstep render`: films captioned clips of the driving world for training and validation."""

import argparse
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fewstep.modalities.video.captions import all_attributes, canonical_caption, draw_captions
from fewstep.modalities.video.data import write_clip
from fewstep.modalities.video.driving import FPS, Drive, DrivingWorld, draw_script

CAPTIONS_PER_SEGMENT = 4
SPLITS = ("train", "val")
START_STRIDE = 13  # coprime to the number of combinations, so clips start from each of them in turn
MAX_CLIPS = 100_000  # per seed and split; keeps the seeds of all clips apart
ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class _Job:
    folder: Path
    index: int
    frames: int
    seed: int
    split: str

    @property
    def name(self) -> str:
        return f"{self.index:05d}"

    @property
    def clip_seed(self) -> int:
        return (self.seed * MAX_CLIPS + self.index) * len(SPLITS) + SPLITS.index(self.split)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `fewstep render`."""
    parser.add_argument("out", type=Path, help="folder to write to; clips go into OUT/train or OUT/val")
    parser.add_argument("--clips", type=int, default=130, help="number of clips")
    parser.add_argument("--frames", type=int, default=320, help="frames per clip, 12 per second")
    parser.add_argument("--seed", type=int, default=0, help="seed of tracks, scripts and captions")
    parser.add_argument("--workers", type=int, default=2, help="processes that render at the same time")
    parser.add_argument("--split", choices=SPLITS, default="train", help="val uses other tracks than train")


def run(args: argparse.Namespace) -> int:
    """Renders the clips that are not there yet; can be stopped and started again."""
    _validate(args)
    folder = args.out / args.split
    jobs = [
        _Job(folder=folder, index=index, frames=args.frames, seed=args.seed, split=args.split)
        for index in range(args.clips)
    ]
    missing = [job for job in jobs if not (folder / f"{job.name}.mp4").exists()]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(f"clips in {folder}", total=len(jobs), completed=len(jobs) - len(missing))
        for _ in _rendered(missing, args.workers):
            progress.advance(task)
    return 0


def _validate(args: argparse.Namespace) -> None:
    for name, low, high in (
        ("clips", 1, MAX_CLIPS),
        ("frames", 1, 100_000),
        ("workers", 1, 256),
        ("seed", 0, 9999),
    ):
        value = getattr(args, name)
        if not low <= value <= high:
            raise ValueError(f"--{name} {value} is out of range; use {low} to {high}")


def _rendered(jobs: list[_Job], workers: int) -> Any:
    if workers == 1 or len(jobs) < 2:
        yield from map(_render, jobs)
        return
    # Spawned, not forked: the parent may hold the threads of torch and of the progress bar.
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        yield from pool.imap_unordered(_render, jobs)


def _render(job: _Job) -> str:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    random = Random(job.clip_seed)
    combinations = all_attributes()
    start = combinations[job.index * START_STRIDE % len(combinations)]
    drive = _drive(job, start, random)
    record = {
        "segments": [
            {
                "start": first,
                "caption": canonical_caption(attributes),
                "captions": draw_captions(attributes, CAPTIONS_PER_SEGMENT, random, split="train"),
                "heldout_captions": draw_captions(attributes, CAPTIONS_PER_SEGMENT, random, split="heldout"),
                "attributes": attributes.as_dict(),
            }
            for first, attributes in drive.segments
        ],
        "lane_offset": [round(float(value), 4) for value in drive.lane_offset],
        "speed": [round(float(value), 3) for value in drive.speed],
        "seed": drive.seed,
    }
    write_clip(job.folder, job.name, drive.frames, record, fps=FPS)
    return job.name


def _drive(job: _Job, start: Any, random: Random) -> Drive:
    for attempt in range(ATTEMPTS):
        script = draw_script(job.frames, random, start=start)
        world = DrivingWorld(job.clip_seed + attempt * 2 * MAX_CLIPS * len(SPLITS) * 10_000)
        drive = world.film(script, frames=job.frames)
        if not drive.off_road:
            return drive
    raise RuntimeError(f"the car left the road in {ATTEMPTS} drives from seed {job.clip_seed}")
