"""Objects as voxels with pictures of them, for `fewstep render --world shapes`."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np

from fewstep.apps.render_progress import done_in_parallel
from fewstep.modalities.objects.captions import (
    BACKGROUNDS,
    LIGHTS,
    TONES,
    VIEWS,
    full_caption,
    heldout_captions,
    train_captions,
)
from fewstep.modalities.objects.scene import SPLITS, Scene, draw_scene, numbered_scene, render_with_coverage
from fewstep.modalities.shape3d.data.shards import SUFFIX, StoredObject, write_shard
from fewstep.modalities.shape3d.data.voxels import SceneSurface, voxelised

SHARD_OBJECTS = 60
MAX_OBJECTS = 10_000_000
VIEW_KEY = 3_141  # keeps the draws of views apart from those of objects


@dataclass(frozen=True, kw_only=True)
class _Shard:
    path: Path
    numbers: range
    size: int
    seed: int
    split: str
    resolution: int
    views: int


def run(args: argparse.Namespace) -> int:
    """Writes the shards that are not there yet."""
    for name, low, high in (
        ("count", 1, MAX_OBJECTS),
        ("size", 8, 4096),
        ("workers", 1, 256),
        ("seed", 0, 2**31 - 1),
        ("resolution", 2, 256),
        ("views", 0, 1000),
    ):
        value = getattr(args, name)
        if not low <= value <= high:
            raise ValueError(f"--{name} {value} is out of range; use {low} to {high}")
    folder = args.out / args.split
    missing = []
    for start in range(0, args.count, SHARD_OBJECTS):
        numbers = range(start, min(start + SHARD_OBJECTS, args.count))
        # The name holds all that decides the content, so that other settings never pass for done.
        sizes = f"r{args.resolution}-{args.views}x{args.size}px"
        name = f"shapes-s{args.seed}-{sizes}-{numbers.start:07d}-{numbers.stop:07d}{SUFFIX}"
        if not (folder / name).exists():
            missing.append(
                _Shard(
                    path=folder / name,
                    numbers=numbers,
                    size=args.size,
                    seed=args.seed,
                    split=args.split,
                    resolution=args.resolution,
                    views=args.views,
                )
            )
    done_in_parallel(
        _render,
        missing,
        workers=args.workers,
        title=f"objects in {folder}",
        done=args.count - sum(len(shard.numbers) for shard in missing),
        total=args.count,
    )
    return 0


def _render(shard: _Shard) -> int:
    write_shard(shard.path, (_object(shard, number) for number in shard.numbers))
    return len(shard.numbers)


def _object(shard: _Shard, number: int) -> StoredObject:
    scene = numbered_scene(number, seed=shard.seed, split=shard.split)
    random = Random(f"{shard.seed}/{shard.split}/{number}")
    seen = [_seen(scene, shard, number, view) for view in range(shard.views)]
    pictures = [render_with_coverage(one, size=shard.size) for one in seen]
    return StoredObject(
        voxels=voxelised(SceneSurface(scene), resolution=shard.resolution),
        views=np.stack(pictures) if pictures else np.zeros((0, shard.size, shard.size, 4), np.uint8),
        record={
            "name": f"{shard.split}-{number:07d}",
            "captions": train_captions(scene.attributes, random),
            "heldout_captions": heldout_captions(scene.attributes, random),
            "full_caption": full_caption(scene.attributes),
            "attributes": scene.attributes.as_dict(),
            "views": [
                {
                    "azimuth": round(one.camera.azimuth, 2),
                    "elevation": round(one.camera.elevation, 2),
                    "view": one.attributes.view,
                    "background": one.attributes.background,
                }
                for one in seen
            ],
            "scene": {"seed": shard.seed, "split": shard.split, "number": number},
        },
    )


def _seen(scene: Scene, shard: _Shard, number: int, view: int) -> Scene:
    """The scene itself as view 0, and the same object by another camera in another studio as any other."""
    if view == 0:
        return scene
    rng = np.random.default_rng((VIEW_KEY, shard.seed, SPLITS.index(shard.split), number, view))
    attributes = replace(
        scene.attributes,
        view=str(rng.choice(VIEWS)),
        light=str(rng.choice(LIGHTS)),
        tone=str(rng.choice(TONES)),
        background=str(rng.choice(BACKGROUNDS)),
    )
    return replace(draw_scene(attributes, rng), shape=scene.shape)
