"""`fewstep render`: captioned training data: clips of the driving world, pictures and shapes of objects."""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from fewstep.apps import render_meshes, render_objects, render_shapes
from fewstep.apps.files import check_folder
from fewstep.apps.render_progress import done_in_parallel
from fewstep.modalities.video.captions import all_attributes, canonical_caption, draw_captions
from fewstep.modalities.video.data import write_clip
from fewstep.modalities.video.driving import FPS, Drive, DrivingWorld, draw_script

CAPTIONS_PER_SEGMENT = 4
WORLDS = ("driving", "objects", "shapes", "meshes")
SPLITS = ("train", "val", "heldout")
DRIVING_SPLITS = SPLITS[:2]
START_STRIDE = 13  # coprime to the number of combinations, so clips start from each of them in turn
MAX_CLIPS = 100_000  # per seed and split; keeps the seeds of all clips apart
ATTEMPTS, MAX_SEED = 10, 9999
ATTEMPT_SEEDS = 2 * MAX_CLIPS * len(DRIVING_SPLITS) * (MAX_SEED + 1)  # from one attempt to the next


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
        return (self.seed * MAX_CLIPS + self.index) * len(DRIVING_SPLITS) + DRIVING_SPLITS.index(self.split)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `fewstep render`."""
    parser.add_argument("out", type=Path, help="folder to write to; results go into OUT/SPLIT")
    parser.add_argument(
        "--world", choices=WORLDS, default="driving", help="what to render (default: driving)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is random")
    parser.add_argument("--workers", type=int, default=2, help="processes that render at the same time")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="train",
        help="val uses other tracks or objects than train; heldout (objects and shapes) pairs of category "
        "and colour that are in no other split",
    )
    driving = parser.add_argument_group("driving")
    driving.add_argument("--clips", type=int, default=130, help="number of clips")
    driving.add_argument("--frames", type=int, default=320, help="frames per clip, 12 per second")
    objects = parser.add_argument_group("objects and shapes")
    objects.add_argument("--count", type=int, default=20_000, help="number of pictures, or of shapes")
    objects.add_argument("--size", type=int, default=64, help="edge of the pictures in pixels")
    shapes = parser.add_argument_group("shapes and meshes")
    shapes.add_argument("--resolution", type=int, default=16, help="voxels per axis")
    shapes.add_argument("--views", type=int, default=4, help="pictures of each shape")
    shapes.add_argument("--meshes", type=Path, help="folder of meshes to import, with all its folders")
    shapes.add_argument("--up", choices=("y", "z"), default="y", help="upward axis of the meshes")


def run(args: argparse.Namespace) -> int:
    """Renders what is not there yet; can be stopped and started again."""
    check_folder(args.out, option="OUT")
    if args.world == "objects":
        return render_objects.run(args)
    if args.world == "shapes":
        return render_shapes.run(args)
    if args.world == "meshes":
        return render_meshes.run(args)
    _validate(args)
    folder = args.out / args.split
    jobs = [
        _Job(folder=folder, index=index, frames=args.frames, seed=args.seed, split=args.split)
        for index in range(args.clips)
    ]
    missing = []
    for job in jobs:
        if (folder / f"{job.name}.mp4").exists():
            _check_made(job)
        else:
            missing.append(job)
    done_in_parallel(
        _render, missing, workers=args.workers, title=f"clips in {folder}", done=len(jobs) - len(missing)
    )
    return 0


def _validate(args: argparse.Namespace) -> None:
    if args.split not in DRIVING_SPLITS:
        raise ValueError(
            f"--split {args.split} is not of the driving world; use {' or '.join(DRIVING_SPLITS)}"
        )
    for name, low, high in (
        ("clips", 1, MAX_CLIPS),
        ("frames", 1, 100_000),
        ("workers", 1, 256),
        ("seed", 0, MAX_SEED),
    ):
        value = getattr(args, name)
        if not low <= value <= high:
            raise ValueError(f"--{name} {value} is out of range; use {low} to {high}")


def _check_made(job: _Job) -> None:
    """A clip of another seed or length must not pass for this one."""
    sidecar = job.folder / f"{job.name}.json"
    try:
        record = json.loads(sidecar.read_text(encoding="utf-8"))
        frames, same_seed = len(record["lane_offset"]), (record["seed"] - job.clip_seed) % ATTEMPT_SEEDS == 0
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{sidecar} is not of this command ({error}); give another folder") from error
    if frames != job.frames or not same_seed:
        what = f"{frames} frames, not {job.frames}" if frames != job.frames else "another --seed"
        raise ValueError(f"{job.folder} holds clips already, of {what}; give another folder, or remove them")


def _render(job: _Job) -> int:
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
    return 1


def _drive(job: _Job, start: Any, random: Random) -> Drive:
    for attempt in range(ATTEMPTS):
        script = draw_script(job.frames, random, start=start)
        world = DrivingWorld(job.clip_seed + attempt * ATTEMPT_SEEDS)
        drive = world.film(script, frames=job.frames)
        if not drive.off_road:
            return drive
    raise RuntimeError(f"the car left the road in {ATTEMPTS} drives from seed {job.clip_seed}")
