"""Pictures of the world of objects, for `fewstep render --world objects`."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fewstep.apps.render_progress import done_in_parallel
from fewstep.modalities.image.files import Picture, Record, write_shard
from fewstep.modalities.objects.captions import full_caption, heldout_captions, train_captions
from fewstep.modalities.objects.scene import numbered_scene, render

SHARD_PICTURES = 250
MAX_PICTURES = 10_000_000


@dataclass(frozen=True, kw_only=True)
class _Shard:
    path: Path
    numbers: range
    size: int
    seed: int
    split: str


def run(args: argparse.Namespace) -> int:
    """Writes the shards that are not there yet."""
    for name, low, high in (
        ("count", 1, MAX_PICTURES),
        ("size", 8, 4096),
        ("workers", 1, 256),
        ("seed", 0, 2**31 - 1),
    ):
        value = getattr(args, name)
        if not low <= value <= high:
            raise ValueError(f"--{name} {value} is out of range; use {low} to {high}")
    folder = args.out / args.split
    missing = []
    for start in range(0, args.count, SHARD_PICTURES):
        numbers = range(start, min(start + SHARD_PICTURES, args.count))
        # The name holds all that decides the content, so another seed, size or count never passes for done.
        name = f"objects-s{args.seed}-{args.size}px-{numbers.start:07d}-{numbers.stop:07d}.tar"
        if not (folder / name).exists():
            shard = _Shard(
                path=folder / name, numbers=numbers, size=args.size, seed=args.seed, split=args.split
            )
            missing.append(shard)
    done_in_parallel(
        _render,
        missing,
        workers=args.workers,
        title=f"pictures in {folder}",
        done=args.count - sum(len(shard.numbers) for shard in missing),
        total=args.count,
    )
    return 0


def _render(shard: _Shard) -> int:
    write_shard(shard.path, (_entry(shard, number) for number in shard.numbers))
    return len(shard.numbers)


def _entry(shard: _Shard, number: int) -> tuple[str, Picture, Record]:
    scene = numbered_scene(number, seed=shard.seed, split=shard.split)
    random = Random(f"{shard.seed}/{shard.split}/{number}")
    record: Record = {
        "captions": train_captions(scene.attributes, random),
        "heldout_captions": heldout_captions(scene.attributes, random),
        "full_caption": full_caption(scene.attributes),
        "attributes": scene.attributes.as_dict(),
        "camera": {"azimuth": round(scene.camera.azimuth, 2), "elevation": round(scene.camera.elevation, 2)},
        "scene": {"seed": shard.seed, "split": shard.split, "number": number},
    }
    return f"{shard.split}-{number:07d}", render(scene, size=shard.size), record
