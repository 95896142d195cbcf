"""A surface as 3D networks learn it: active voxels with features, distances at the corners of finer cells.

Space is the cube [-0.5, 0.5]^3, z up. ``R`` voxels lie along each axis, and 4 cells of the mesh grid along
each voxel, as in TRELLIS (Xiang et al., 2024), whose 64 voxels carry a mesh grid of 256.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int8, Int64, UInt8

from fewstep.modalities.objects.primitives import Points
from fewstep.modalities.objects.raycast import TETRAHEDRON
from fewstep.modalities.objects.scene import Scene

CELLS_PER_VOXEL = 4  # two subdivisions of the mesh decoder
BAND = 3.0  # cells beyond which distances are cut, as in a truncated signed distance field
FEATURES = 18  # offset 3, normal 3, colour 3, distance 1, occupancy 8
GRADIENT_STEP = 5e-4  # a thirtieth of a cell of a grid of 64
NEWTON_STEPS = 5
ON_SURFACE = 1e-3
TANGENT_STEPS = 2
FLAT_GRADIENT = 0.1  # below it a point lies between two equally near surfaces

Rows = Float32[np.ndarray, " point 3"]


@runtime_checkable
class Surface(Protocol):
    """A closed coloured surface inside [-0.5, 0.5]^3."""

    def lattice(self, cells: int) -> Float32[np.ndarray, " corner corner corner"]:
        """Signed distances at the ``cells + 1`` corners per axis, negative inside; exact to first order where
        they are below ``BAND`` cells."""
        ...

    def nearest(self, points: Rows) -> tuple[Rows, Rows]:
        """The surface points nearest to points close to the surface, and the outward unit normals there, 0
        where no surface point was found."""
        ...

    def colour(self, points: Rows) -> UInt8[np.ndarray, " point 3"]:
        """sRGB of the surface without light, at points on it."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Voxels:
    """One object as training data.

    Args:
        resolution: voxels per axis, R.
        coords: active voxels, those with corners of cells on both sides of the surface; in row-major order.
        features: per voxel, see `voxelised`.
        distance: signed distance in cells, cut to +-``BAND``, at every corner of a cell of an active voxel;
            corners in row-major order of the lattice.
        colour: sRGB of the surface nearest to each of these corners.
        normal: outward normal there, times 127.
    """

    resolution: int
    coords: UInt8[np.ndarray, " voxel 3"]
    features: Float16[np.ndarray, " voxel 18"]
    distance: Float16[np.ndarray, " corner"]
    colour: UInt8[np.ndarray, " corner 3"]
    normal: Int8[np.ndarray, " corner 3"]


@dataclass(frozen=True, eq=False)
class SceneSurface:
    """The object of a scene of `modalities.objects`."""

    scene: Scene

    def lattice(self, cells: int) -> Float32[np.ndarray, " corner corner corner"]:
        axis = (np.arange(cells + 1) / cells - 0.5).astype(np.float32)
        points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1)
        distance = self.scene.shape.rows_distance(points)
        # Solids may give less than the true distance; their gradient says by what factor.
        near = np.flatnonzero(np.abs(distance) < BAND / cells)
        slope = np.sqrt((self._gradient(points[:, near]) ** 2).sum(0))
        distance[near] /= np.where(slope > FLAT_GRADIENT, slope, 1)
        return distance.reshape(cells + 1, cells + 1, cells + 1)

    def nearest(self, points: Rows) -> tuple[Rows, Rows]:
        found = np.ascontiguousarray(points.T)
        for _ in range(NEWTON_STEPS):
            gradient = self._gradient(found)
            square = np.maximum((gradient * gradient).sum(0), np.float32(FLAT_GRADIENT**2))
            found = found - self.scene.shape.rows_distance(found) * gradient / square
        gradient = self._gradient(found)
        normal = gradient / np.maximum(np.sqrt((gradient * gradient).sum(0)), np.float32(1e-12))
        # Inside a union its distance may lead to a part's surface that another part covers.
        normal[:, np.abs(self.scene.shape.rows_distance(found)) > ON_SURFACE] = 0
        return found.T.copy(), normal.T.copy()

    def colour(self, points: Rows) -> UInt8[np.ndarray, " point 3"]:
        return srgb(self.scene.albedo(points))

    def _gradient(self, points: Points) -> Points:
        total = np.zeros_like(points)
        for corner in TETRAHEDRON.T[:, :, None]:
            total += corner * self.scene.shape.rows_distance(points + np.float32(GRADIENT_STEP) * corner)
        return total / np.float32(4 * GRADIENT_STEP)


def srgb(linear: Float32[np.ndarray, " point 3"]) -> UInt8[np.ndarray, " point 3"]:
    """Linear RGB in 0 to 1 as 8-bit sRGB."""
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(coded * 255).astype(np.uint8)


def voxelised(surface: Surface, *, resolution: int = 16) -> Voxels:
    """Active voxels of a surface, what they carry, and the targets of a mesh decoder.

    The features of a voxel: from its centre to the nearest surface point, in voxels (3); the normal there
    (3); the colour there, sRGB in 0 to 1 (3); the signed distance of the centre, in voxels (1); which of the
    centres of its eighths are inside, z fastest (8).

    Raises:
        ValueError: where no corner of the lattice is inside.
    """
    if resolution < 2 or resolution > 256:
        raise ValueError(f"resolution={resolution} must be 2 to 256, for example 16")
    lattice = surface.lattice(CELLS_PER_VOXEL * resolution)
    coords = active_voxels(lattice < 0)
    if len(coords) == 0:
        raise ValueError(
            f"the surface encloses no corner of a grid of {CELLS_PER_VOXEL * resolution}: it is empty, open "
            "or thinner than a cell"
        )
    corners = np.argwhere(corner_mask(coords, resolution))
    distance = lattice[tuple(corners.T)]
    found, normal = surface.nearest(_positions(corners, lattice))
    colour = surface.colour(found)
    return Voxels(
        resolution=resolution,
        coords=coords.astype(np.uint8),
        features=_features(surface, lattice, coords, corners, found, normal),
        distance=np.clip(distance * (len(lattice) - 1), -BAND, BAND).astype(np.float16),
        colour=colour,
        normal=np.round(normal * 127).astype(np.int8),
    )


def active_voxels(inside: Bool[np.ndarray, " corner corner corner"]) -> Int64[np.ndarray, " voxel 3"]:
    """Voxels among whose corners of cells some are inside and some outside, in row-major order."""
    some, every = inside, inside
    for axis in range(3):
        some, every = _spread(some, axis, np.logical_or), _spread(every, axis, np.logical_and)
    return np.argwhere(some & ~every)


def _spread(corners: np.ndarray, axis: int, combine: np.ufunc) -> np.ndarray:
    """The corners 0 to 4 of every voxel, combined along one axis."""
    corners = np.moveaxis(corners, axis, 0)
    voxels = (len(corners) - 1) // CELLS_PER_VOXEL
    total = corners[: voxels * CELLS_PER_VOXEL : CELLS_PER_VOXEL]
    for step in range(1, CELLS_PER_VOXEL + 1):
        total = combine(total, corners[step::CELLS_PER_VOXEL][:voxels])
    return np.moveaxis(total, 0, axis)


def corner_mask(
    coords: Int64[np.ndarray, " voxel 3"], resolution: int
) -> Bool[np.ndarray, " corner corner corner"]:
    """The corners of all cells of these voxels."""
    mask = np.zeros([CELLS_PER_VOXEL * resolution + 1] * 3, bool)
    steps = np.indices([CELLS_PER_VOXEL + 1] * 3).reshape(3, -1).T
    mask[tuple((CELLS_PER_VOXEL * coords[:, None] + steps).reshape(-1, 3).T)] = True
    return mask


def _positions(corners: Int64[np.ndarray, " point 3"], lattice: np.ndarray) -> Rows:
    return (corners / (len(lattice) - 1) - 0.5).astype(np.float32)


def _features(
    surface: Surface,
    lattice: np.ndarray,
    coords: Int64[np.ndarray, " voxel 3"],
    corners: Int64[np.ndarray, " corner 3"],
    found: Rows,
    normal: Rows,
) -> Float16[np.ndarray, " voxel 18"]:
    """Features of voxels; `found` and `normal` are what is nearest to the corners."""
    cells, half = len(lattice) - 1, CELLS_PER_VOXEL // 2
    steps = np.indices([CELLS_PER_VOXEL + 1] * 3).reshape(3, -1).T
    block = tuple(np.moveaxis(CELLS_PER_VOXEL * coords[:, None] + steps, -1, 0))
    row = np.zeros(lattice.shape, np.int64)
    row[tuple(corners.T)] = np.arange(len(corners))
    candidates = row[block]
    centre = _positions(CELLS_PER_VOXEL * coords + half, lattice)
    # From a centre itself the way may be lost, midway between two sheets; from some of its corners it is not.
    away = _lengths(found[candidates] - centre[:, None])
    away[(_lengths(normal) == 0)[candidates]] = np.inf
    best = np.take_along_axis(candidates, away.argmin(1)[:, None], 1)[:, 0]
    point, facing = _closest(surface, centre, found[best], normal[best])
    distances, resolution = lattice[block], cells // CELLS_PER_VOXEL
    eighths = [all(value in (1, CELLS_PER_VOXEL - 1) for value in step) for step in steps]
    columns = (
        (point - centre) * resolution,
        facing,
        surface.colour(point) / 255,
        distances[:, (steps == half).all(1)] * resolution,
        distances[:, eighths] < 0,
    )
    return np.concatenate(columns, axis=1).astype(np.float16)


def _closest(surface: Surface, centre: Rows, point: Rows, facing: Rows) -> tuple[Rows, Rows]:
    """The surface points closest to centres, from points that are nearly that: along the tangent plane."""
    for _ in range(TANGENT_STEPS):
        above = ((centre - point) * facing).sum(1, keepdims=True)
        moved, normal = surface.nearest(centre - above * facing)
        better = (_lengths(moved - centre) < _lengths(point - centre)) & normal.any(1)
        point, facing = np.where(better[:, None], moved, point), np.where(better[:, None], normal, facing)
    return point, facing


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt((vectors * vectors).sum(-1))
