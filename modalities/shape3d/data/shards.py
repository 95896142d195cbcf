"""Objects on disk: shards of voxels, corner targets, views and captions, written once and mapped into memory.

A shard is one safetensors file. Rows of all its objects lie one after another, `voxel_starts` and
`corner_starts` say where each object's begin; what is known of each object is JSON in the header.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from fewstep.modalities.shape3d.data.voxels import Voxels

FORMAT = 1
KEY = "shard"  # of the header's text
SUFFIX = ".safetensors"

Record = dict[str, Any]  # what a shard's header holds of an object
Views = UInt8[np.ndarray, " view size size 4"]


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredObject:
    """One object of a shard.

    Args:
        voxels: see `voxelised`.
        views: pictures with their backgrounds, and the object's coverage as the fourth channel; none for
            objects that have not been rendered.
        record: captions, attributes and origin; `name` must be there.
    """

    voxels: Voxels
    views: Views
    record: Record


def write_shard(path: Path, objects: Iterable[StoredObject]) -> None:
    """Writes objects of one resolution, and equally many views each, as one shard, complete or not at all."""
    rows = list(objects)
    voxels = [one.voxels for one in rows]
    if len({(one.voxels.resolution, one.views.shape) for one in rows}) != 1:
        raise ValueError(
            f"{path}: objects differ in resolution or views; write those of each kind to a shard of their own"
        )
    arrays = {
        "voxel_starts": _starts([len(one.coords) for one in voxels]),
        "corner_starts": _starts([len(one.distance) for one in voxels]),
        **{
            name: np.concatenate([getattr(one, name) for one in voxels])
            for name in ("coords", "features", "distance", "colour", "normal")
        },
        "views": np.stack([one.views for one in rows]),
    }
    header = {
        "format": FORMAT,
        "resolution": voxels[0].resolution,
        "records": [one.record for one in rows],
    }
    # one entry, as safetensors writes several in any order
    text = json.dumps(header, separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # safetensors writes an array's memory as it lies, whatever its strides
        save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()}, part, metadata={KEY: text}
        )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _starts(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


class Shard:
    """One file, mapped into memory; an object's rows are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            header = json.loads((self._file.metadata() or {}).get(KEY, "{}"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a whole shard ({error}); remove it and render again") from error
        if header.get("format") != FORMAT:
            raise ValueError(f"{path} has format {header.get('format')}, expected {FORMAT}; render it again")
        self.resolution: int = header["resolution"]
        self.records: tuple[Record, ...] = tuple(header["records"])
        self._voxel_starts = self._file.get_tensor("voxel_starts").tolist()
        self._corner_starts = self._file.get_tensor("corner_starts").tolist()
        self.num_views = int(self._file.get_slice("views").get_shape()[1])

    @cached_property
    def _file(self) -> Any:
        return safe_open(self.path, "pt")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __len__(self) -> int:
        return len(self.records)

    def num_voxels(self, number: int) -> int:
        """Active voxels of one object."""
        return self._voxel_starts[number + 1] - self._voxel_starts[number]

    def voxel_rows(self, name: str, number: int) -> Tensor:
        """`coords` ``[N, 3]`` or `features` ``[N, 18]`` of one object."""
        return self._file.get_slice(name)[self._voxel_starts[number] : self._voxel_starts[number + 1]]

    def corner_rows(self, name: str, number: int) -> Tensor:
        """`distance` ``[C]``, `colour` ``[C, 3]`` or `normal` ``[C, 3]`` of one object."""
        return self._file.get_slice(name)[self._corner_starts[number] : self._corner_starts[number + 1]]

    def view(self, number: int, view: int) -> Tensor:
        """One picture ``[size, size, 4]`` of one object, 8 bits."""
        return self._file.get_slice("views")[number : number + 1, view : view + 1][0, 0]

    def voxels(self, number: int) -> Voxels:
        """One object as it was written."""
        return Voxels(
            resolution=self.resolution,
            coords=self.voxel_rows("coords", number).numpy(),
            features=self.voxel_rows("features", number).numpy(),
            distance=self.corner_rows("distance", number).numpy(),
            colour=self.corner_rows("colour", number).numpy(),
            normal=self.corner_rows("normal", number).numpy(),
        )


def open_shards(folder: Path | str) -> tuple[Shard, ...]:
    """All shards of a folder in the order of their names.

    Raises:
        ValueError: no folder, none in it, or shards of several resolutions.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
    if not files:
        raise ValueError(f"{folder} holds no shard; write some with `fewstep render OUT --world shapes`")
    shards = tuple(Shard(path) for path in files)
    if len({shard.resolution for shard in shards}) > 1:
        raise ValueError(f"{folder} mixes resolutions; give every resolution a folder of its own")
    return shards
