"""Objects of a folder of shards as batches: occupancy, sparse voxels, corner targets, pictures, latents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Float32, Int32, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from fewstep.modalities.shape3d.data.shards import Record, Shard, open_shards

Part = Literal["occupancy", "voxels", "corners", "pictures", "structure_latents", "latents"]
Batch = dict[str, Tensor]
Pick = tuple[int, int]  # number of an object, and a random number that chooses its picture

BYTE = 255.0
NORMAL_SCALE = 127.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """Latents of all objects of a folder: ``[object, *event]``, or ``[voxel, channel]`` in the voxels' order.

    ``mean`` and ``std`` per channel are those of the objects that a flow is trained on.
    """

    values: Float[Tensor, " row *event"]
    mean: Float[Tensor, " channel"]
    std: Float[Tensor, " channel"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shapes(Dataset[Batch]):
    """Objects of a folder; whole batches are read at once.

    An item of a batch is a pair: the number of an object, and any non-negative number, which chooses one of
    its views and whether the background is there or black.

    Args:
        shards: of one resolution, see `open_shards`.
        parts: what batches hold.
        latents: for the parts of that name.
    """

    shards: tuple[Shard, ...]
    parts: tuple[Part, ...]
    latents: Mapping[Part, Latents] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "pictures" in self.parts and min(shard.num_views for shard in self.shards) < 1:
            raise ValueError("parts holds 'pictures', but some objects have no views; render them with views")

    @classmethod
    def of(cls, folder: Path | str, *parts: Part) -> "Shapes":
        """The objects of a folder, without latents."""
        return cls(shards=open_shards(folder), parts=parts)

    @property
    def resolution(self) -> int:
        """Voxels per axis."""
        return self.shards[0].resolution

    @cached_property
    def _places(self) -> list[tuple[Shard, int]]:
        return [(shard, number) for shard in self.shards for number in range(len(shard))]

    @cached_property
    def voxel_starts(self) -> list[int]:
        """Where each object's voxels begin among those of all objects, and where the last one's end."""
        return list(accumulate((shard.num_voxels(number) for shard, number in self._places), initial=0))

    def record(self, number: int) -> Record:
        """Captions, attributes and origin of an object."""
        shard, place = self._places[number]
        return shard.records[place]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, pick: Pick) -> Batch:
        return self.__getitems__([pick])

    def __getitems__(self, picks: Sequence[Pick]) -> Batch:
        """A batch of B objects with N voxels and C corners in all.

        Returns:
            ``numbers`` ``[B]``, those of the objects, and by part

            * occupancy: ``occupancy`` ``[B, 1, R, R, R]``, 0 or 1.
            * voxels: ``coords`` int32 ``[N, 4]`` (object in the batch, x, y, z), ``features`` ``[N, 18]``.
            * corners: ``corner_distance`` ``[C]`` in cells, ``corner_colour`` ``[C, 3]`` in 0 to 1,
              ``corner_normal`` ``[C, 3]``; row-major within each object, see `corner_rows`.
            * pictures: ``pictures`` ``[B, 3, size, size]`` in 0 to 1.
            * structure_latents: ``structure_latents`` ``[B, *event]``, as encoded.
            * latents: ``coords`` as above and ``latents`` ``[N, channel]``, normalised.
        """
        batch: Batch = {"numbers": torch.tensor([number for number, _ in picks])}
        places = [self._places[number] for number, _ in picks]
        if {"occupancy", "voxels", "corners", "latents"} & set(self.parts):
            batch["coords"] = self._coords(places)
        if "occupancy" in self.parts:
            batch["occupancy"] = occupancy(batch["coords"], len(picks), self.resolution)
        if "voxels" in self.parts:
            batch["features"] = torch.cat(
                [shard.voxel_rows("features", number) for shard, number in places]
            ).float()
        if "corners" in self.parts:
            for name, scale in (("distance", 1.0), ("colour", BYTE), ("normal", NORMAL_SCALE)):
                rows = torch.cat([shard.corner_rows(name, number) for shard, number in places])
                batch[f"corner_{name}"] = rows.float() / scale
        if "pictures" in self.parts:
            batch["pictures"] = torch.stack([self._picture(pick) for pick in picks])
        if "structure_latents" in self.parts:
            batch["structure_latents"] = self.latents["structure_latents"].values[batch["numbers"]].float()
        if "latents" in self.parts:
            batch["latents"] = self._latents(picks)
        return batch

    def _coords(self, places: Sequence[tuple[Shard, int]]) -> Int32[Tensor, " voxel 4"]:
        rows = []
        for sample, (shard, number) in enumerate(places):
            coords = shard.voxel_rows("coords", number).int()
            rows.append(torch.cat([coords.new_full((len(coords), 1), sample), coords], dim=1))
        return torch.cat(rows)

    def _picture(self, pick: Pick) -> Float32[Tensor, " 3 size size"]:
        (shard, number), draw = self._places[pick[0]], pick[1]
        view, on_black = draw // 2 % shard.num_views, draw % 2 == 1
        picture = shard.view(number, view)
        return matted(picture) if on_black else in_its_studio(picture)

    def _latents(self, picks: Sequence[Pick]) -> Float32[Tensor, " voxel channel"]:
        source, starts = self.latents["latents"], self.voxel_starts
        rows = torch.cat([source.values[starts[number] : starts[number + 1]] for number, _ in picks])
        return (rows.float() - source.mean) / source.std


def in_its_studio(view: UInt8[Tensor, " size size 4"]) -> Float32[Tensor, " 3 size size"]:
    """The picture with its background."""
    return view[..., :3].permute(2, 0, 1).float() / BYTE


def matted(view: UInt8[Tensor, " size size 4"]) -> Float32[Tensor, " 3 size size"]:
    """The object alone on black, multiplied by its coverage as TRELLIS does with a matte."""
    return in_its_studio(view) * (view[..., 3].float() / BYTE)


def occupancy(
    coords: Int32[Tensor, " voxel 4"], batch_size: int, resolution: int
) -> Float32[Tensor, " batch 1 x y z"]:
    """1 at active voxels, 0 elsewhere."""
    dense = torch.zeros(batch_size, 1, resolution, resolution, resolution, device=coords.device)
    b, x, y, z = coords.long().unbind(1)
    dense[b, 0, x, y, z] = 1
    return dense
