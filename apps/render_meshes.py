"""Meshes of a folder as voxels, for `fewstep render --world meshes`."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fewstep.apps.render_progress import done_in_parallel
from fewstep.modalities.shape3d.data.meshes import Up, imported, mesh_files
from fewstep.modalities.shape3d.data.shards import SUFFIX, StoredObject, write_shard

SHARD_MESHES = 60


@dataclass(frozen=True, kw_only=True)
class _Shard:
    path: Path
    meshes: tuple[Path, ...]
    resolution: int
    up: Up
    views: int
    size: int
    seed: int


def run(args: argparse.Namespace) -> int:
    """Writes the shards that are not there yet; meshes that enclose nothing are left out and named."""
    if args.meshes is None:
        raise ValueError("--world meshes needs --meshes FOLDER, the folder to import")
    for name, low, high in (("resolution", 2, 256), ("views", 0, 1000), ("size", 8, 4096)):
        if not low <= getattr(args, name) <= high:
            raise ValueError(f"--{name} {getattr(args, name)} is out of range; use {low} to {high}")
    files = mesh_files(args.meshes)
    folder = args.out / args.split
    missing = []
    for start in range(0, len(files), SHARD_MESHES):
        meshes = tuple(files[start : start + SHARD_MESHES])
        sizes = f"{args.up}-r{args.resolution}-{args.views}x{args.size}px"
        name = f"meshes-s{args.seed}-{sizes}-{start:07d}-{start + len(meshes):07d}{SUFFIX}"
        if not (folder / name).exists():
            missing.append(
                _Shard(
                    path=folder / name,
                    meshes=meshes,
                    resolution=args.resolution,
                    up=args.up,
                    views=args.views,
                    size=args.size,
                    seed=args.seed,
                )
            )
    done_in_parallel(
        _import,
        missing,
        workers=args.workers,
        title=f"meshes in {folder}",
        done=len(files) - sum(len(shard.meshes) for shard in missing),
        total=len(files),
    )
    return 0


def _import(shard: _Shard) -> int:
    objects = [one for path in shard.meshes if (one := _object(path, shard)) is not None]
    if objects:
        write_shard(shard.path, objects)
    return len(shard.meshes)


def _object(path: Path, shard: _Shard) -> StoredObject | None:
    try:
        return imported(
            path,
            resolution=shard.resolution,
            up=shard.up,
            views=shard.views,
            size=shard.size,
            seed=shard.seed,
        )
    except ValueError as error:
        Console(stderr=True).print(f"left out: {path}: {error}", markup=False, soft_wrap=True)
        return None
