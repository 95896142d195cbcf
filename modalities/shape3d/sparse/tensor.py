"""Features on active voxels, and what follows from the voxels' coordinates alone, computed once.

Axis names: ``voxel`` (rows: the active voxels of all samples), ``offset`` (the 27 of a 3 x 3 x 3
neighbourhood).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int32, Int64, Shaped
from torch import Tensor

from fewstep.modalities.shape3d.sparse.segments import KEPT, Segments

NEIGHBOURHOOD = 27
CHILDREN = 8
LARGEST_LOOKUP = 2**26  # entries of a table of all places, padding included: 256 MiB of int32


@dataclass(frozen=True, eq=False)
class Voxels:
    """Places of active voxels: rows of one sample together, samples in order.

    Neighbours, windows and coarser and finer grids are computed at the first use and kept, so that all
    layers and all steps of a sampler that share a ``Voxels`` share them.

    Args:
        coords: sample, x, y, z.
        batch_size: number of samples, of which every one has a voxel.
        resolution: of the whole grid along an axis; coordinates are below it.
        parents: of these voxels, where they are the subdivision of others.
    """

    coords: Int32[Tensor, " voxel 4"]
    batch_size: int
    resolution: int
    parents: "Voxels | None" = None
    _windows: dict[tuple[int, int], tuple[Tensor, Segments]] = field(
        default_factory=dict, init=False, repr=False
    )
    _coarser: dict[int, tuple["Voxels", Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def device(self) -> torch.device:
        return self.coords.device

    @cached_property
    @KEPT
    def index(self) -> Int64[Tensor, " voxel"]:
        """The sample of each row."""
        return self.coords[:, 0].long()

    @cached_property
    @KEPT
    def samples(self) -> Segments:
        """How samples lie in the rows."""
        return Segments(torch.bincount(self.index, minlength=self.batch_size))

    @cached_property
    def layout(self) -> list[slice]:
        """The rows of each sample."""
        starts = self.samples.starts
        return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(self)], strict=True)]

    @cached_property
    @KEPT
    def finer(self) -> "Voxels":
        """All eight halves of every voxel, z fastest, one parent after another."""
        steps = torch.cartesian_prod(*[torch.arange(2, dtype=torch.int32, device=self.device)] * 3)
        children = (2 * self.coords[:, None, 1:] + steps).flatten(0, 1)
        sample = self.coords[:, :1].repeat_interleave(CHILDREN, dim=0)
        return Voxels(torch.cat([sample, children], 1), self.batch_size, 2 * self.resolution, parents=self)

    @KEPT
    def coarser(self, factor: int) -> tuple["Voxels", Int64[Tensor, " voxel"]]:
        """The voxels of a grid that is coarser by ``factor``, row-major, and each row's parent."""
        if factor not in self._coarser:
            resolution = -(-self.resolution // factor)
            places = torch.cat([self.coords[:, :1], self.coords[:, 1:] // factor], 1).long()
            codes, parent = torch.unique(_codes(places, resolution), return_inverse=True)
            coords = _coords(codes, resolution)
            self._coarser[factor] = Voxels(coords, self.batch_size, resolution), parent
        return self._coarser[factor]

    @KEPT
    def windows(self, size: int, shift: int) -> tuple[Int64[Tensor, " voxel"], Segments]:
        """Rows in the order of the windows that they lie in, and how windows lie in that order.

        Windows are cubes of ``size``, moved by ``shift`` along every axis and cut off at the faces.
        """
        if (size, shift) not in self._windows:
            per_axis = (self.resolution - 1 + shift) // size + 1
            places = torch.cat([self.coords[:, :1], (self.coords[:, 1:] + shift) // size], 1).long()
            window, order = _codes(places, per_axis).sort(stable=True)
            lengths = torch.unique_consecutive(window, return_counts=True)[1]
            self._windows[size, shift] = order, Segments(lengths)
        return self._windows[size, shift]

    @cached_property
    @KEPT
    def neighbours(self) -> Int32[Tensor, " voxel offset"]:
        """For every row the rows of its 3 x 3 x 3 neighbourhood, z fastest; the number of rows where there
        is no voxel. Entry 13 is the row itself, and k of n is m where 26 - k of m is n.
        """
        if self.parents is not None:
            return _neighbours_of_children(self.parents.neighbours)
        places = self.batch_size * (self.resolution + 2) ** 3
        return self._looked_up(places) if places <= LARGEST_LOOKUP else self._searched()

    def _looked_up(self, places: int) -> Tensor:
        codes = self._padded_codes
        table = torch.full((places,), len(self), dtype=torch.int32, device=self.device)
        table[codes] = torch.arange(len(self), dtype=torch.int32, device=self.device)
        return table[codes[:, None] + self._offsets]

    def _searched(self) -> Tensor:
        codes, order = self._padded_codes.sort()
        wanted = self._padded_codes[:, None] + self._offsets
        found = torch.searchsorted(codes, wanted).clamp_max(len(codes) - 1)
        return torch.where(codes[found] == wanted, order[found], len(self)).int()

    @cached_property
    @KEPT
    def _padded_codes(self) -> Tensor:
        """Places on a grid with one empty layer around it, so that no neighbour falls into the next row."""
        shifted = self.coords.long() + torch.tensor([0, 1, 1, 1], device=self.device)
        return _codes(shifted, self.resolution + 2)

    @property
    def _offsets(self) -> Tensor:
        side = self.resolution + 2
        x, y, z = _steps(self.device).unbind(1)
        return (x * side + y) * side + z


def _steps(device: torch.device) -> Int64[Tensor, " offset 3"]:
    return torch.cartesian_prod(*[torch.arange(-1, 2, device=device)] * 3)


def _codes(places: Int64[Tensor, " voxel 4"], side: int) -> Int64[Tensor, " voxel"]:
    sample, x, y, z = places.unbind(1)
    return ((sample * side + x) * side + y) * side + z


def _coords(codes: Int64[Tensor, " voxel"], side: int) -> Int32[Tensor, " voxel 4"]:
    z, y, x = codes % side, codes // side % side, codes // side**2 % side
    return torch.stack([codes // side**3, x, y, z], 1).int()


def _neighbours_of_children(parents: Int32[Tensor, " voxel offset"]) -> Int32[Tensor, " child offset"]:
    """The table of a subdivision from that of its parents: all children of a voxel are active."""
    corners = torch.cartesian_prod(*[torch.arange(2, device=parents.device)] * 3)
    places = corners[:, None] + _steps(parents.device)  # -1 to 2, in children
    weights = torch.tensor([9, 3, 1], device=parents.device)
    parent = ((places.div(2, rounding_mode="floor") + 1) * weights).sum(2)
    child = (places % 2 * torch.tensor([4, 2, 1], device=parents.device)).sum(2)
    # in place: the table has millions of entries; a missing parent's children are those past the last
    rows = parents.index_select(1, parent.flatten()).mul_(CHILDREN).add_(child.flatten().int())
    return rows.clamp_(max=CHILDREN * len(parents)).view(-1, parent.shape[1])


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Features of active voxels.

    Args:
        feats: one row per voxel.
        voxels: where they are, shared by all tensors of a level.
    """

    feats: Shaped[Tensor, " voxel *feature"]
    voxels: Voxels

    @classmethod
    def of(
        cls, feats: Shaped[Tensor, " voxel *feature"], coords: Tensor, *, batch_size: int, resolution: int
    ) -> "SparseTensor":
        """Features on new voxels, which are checked: inside the grid, each once, samples in order.

        Args:
            coords: integers ``[voxel, 4]``: sample, x, y, z.

        Raises:
            ValueError: the coordinates are not such.
        """
        _check(feats, coords, batch_size, resolution)
        return cls(feats, Voxels(coords.int(), batch_size, resolution))

    @classmethod
    def batched(cls, tensors: Sequence["SparseTensor"]) -> "SparseTensor":
        """Several tensors of equal resolution as the samples of one."""
        before, coords = 0, []
        for tensor in tensors:
            coords.append(tensor.coords + torch.tensor([before, 0, 0, 0], device=tensor.coords.device).int())
            before += tensor.batch_size
        feats = torch.cat([tensor.feats for tensor in tensors])
        return cls.of(feats, torch.cat(coords), batch_size=before, resolution=tensors[0].resolution)

    def replace(self, feats: Shaped[Tensor, " voxel *other"]) -> "SparseTensor":
        """Other features on the same voxels."""
        return replace(self, feats=feats)

    def sample(self, number: int) -> "SparseTensor":
        """One sample alone."""
        rows = self.layout[number]
        coords = self.coords[rows] * torch.tensor([0, 1, 1, 1], device=self.coords.device).int()
        return SparseTensor(self.feats[rows], Voxels(coords, 1, self.resolution))

    @property
    def coords(self) -> Int32[Tensor, " voxel 4"]:
        """Sample, x, y, z of each row."""
        return self.voxels.coords

    @property
    def batch_size(self) -> int:
        """Number of samples."""
        return self.voxels.batch_size

    @property
    def resolution(self) -> int:
        """Of the whole grid along an axis."""
        return self.voxels.resolution

    @property
    def index(self) -> Int64[Tensor, " voxel"]:
        """The sample of each row."""
        return self.voxels.index

    @property
    def layout(self) -> list[slice]:
        """The rows of each sample."""
        return self.voxels.layout

    def spread(self, values: Float[Tensor, " batch *feature"]) -> Float[Tensor, " row *feature"]:
        """One value per sample in every row of the sample; a single sample's is left as one row."""
        return values if self.batch_size == 1 else values[self.index]


def _check(feats: Tensor, coords: Tensor, batch_size: int, resolution: int) -> None:
    if coords.ndim != 2 or coords.shape[1] != 4 or coords.is_floating_point() or len(coords) != len(feats):
        raise ValueError(
            f"coords of shape {tuple(coords.shape)} and {coords.dtype} must be integers [{len(feats)}, 4], "
            "one row (sample, x, y, z) per row of feats"
        )
    counts = torch.bincount(coords[:, 0].clamp_min(0), minlength=batch_size)
    if len(counts) != batch_size or not bool((counts > 0).all()) or bool((coords[:, 0].diff() < 0).any()):
        raise ValueError(
            f"coords name samples with {counts.tolist()} voxels for batch_size={batch_size}; give every "
            "sample from 0 on at least one voxel, samples in order"
        )
    low, high = coords[:, 1:].min().item(), coords[:, 1:].max().item()
    if low < 0 or high >= resolution:
        raise ValueError(
            f"coords reach from {low} to {high}; resolution={resolution} has 0 to {resolution - 1}"
        )
    codes = _codes(coords.long(), resolution)
    if len(codes.unique()) != len(codes):
        raise ValueError(f"coords have {len(codes) - len(codes.unique())} voxels twice; give each once")
