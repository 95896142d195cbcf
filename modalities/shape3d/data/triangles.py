"""A triangle mesh as a `Surface`: signs by the parity of rays, distances by the nearest triangles."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8

from fewstep.modalities.shape3d.data.voxels import BAND, Rows

SAMPLES = 60_000  # spread evenly over the surface, to find triangles near a point
NEIGHBOURS = 12  # samples whose triangles are measured exactly
# Keeps rays off edges and corners, which lie at round numbers in many meshes; far below a cell.
JITTER = (3.1e-5, 4.7e-5)
CHUNK = 2_000_000  # pairs of ray and triangle looked at together

Pairs = Float32[np.ndarray, " pair 3"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TriangleSurface:
    """A closed mesh inside [-0.5, 0.5]^3.

    Where the parities of rays along the three axes disagree, as near a small hole, two of them decide.

    Args:
        vertices: z up.
        faces: triples of vertices.
        colours: sRGB of the three corners of each face.
    """

    vertices: Float32[np.ndarray, " vertex 3"]
    faces: Int64[np.ndarray, " face 3"]
    colours: UInt8[np.ndarray, " face 3 3"]

    def lattice(self, cells: int) -> Float32[np.ndarray, " corner corner corner"]:
        axis = (np.arange(cells + 1) / cells - 0.5).astype(np.float32)
        points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        distance = self._tree.query(points)[0].astype(np.float32)
        # The samples are at most so far from the true nearest points as they are from each other.
        near = np.flatnonzero(distance < (BAND + 1) / cells)
        distance[near] = np.linalg.norm(self._projected(points[near])[0] - points[near], axis=1)
        odd = np.stack([self._odd_crossings(cells, axis) for axis in range(3)])
        inside = odd.astype(np.int8).sum(0) >= 2
        return np.where(inside, -1, 1).astype(np.float32) * distance.reshape(inside.shape)

    def nearest(self, points: Rows) -> tuple[Rows, Rows]:
        found, face, _ = self._projected(points)
        return found, self._normals[face]

    def colour(self, points: Rows) -> UInt8[np.ndarray, " point 3"]:
        _, face, weights = self._projected(points)
        mixed = (self.colours[face].astype(np.float32) * weights[..., None]).sum(1)
        return np.round(mixed).astype(np.uint8)

    @cached_property
    def _corners(self) -> Float32[np.ndarray, " face 3 3"]:
        return self.vertices[self.faces]

    @cached_property
    def _crosses(self) -> Float32[np.ndarray, " face 3"]:
        a, b, c = np.moveaxis(self._corners, 1, 0)
        return np.cross(b - a, c - a)

    @cached_property
    def _normals(self) -> Float32[np.ndarray, " face 3"]:
        return self._crosses / np.maximum(np.linalg.norm(self._crosses, axis=1, keepdims=True), 1e-20)

    @cached_property
    def _samples(self) -> tuple[Rows, Int64[np.ndarray, " point"]]:
        """Points spread over the surface by area, at least one on each triangle, and their triangles."""
        area = np.linalg.norm(self._crosses, axis=1)
        count = 1 + np.floor(area / max(float(area.sum()), 1e-20) * SAMPLES).astype(np.int64)
        face = np.repeat(np.arange(len(self.faces)), count)
        u, v = np.random.default_rng(0).random((2, len(face)), np.float32)
        folded = u + v > 1
        u, v = np.where(folded, 1 - u, u), np.where(folded, 1 - v, v)
        a, b, c = np.moveaxis(self._corners[face], 1, 0)
        return a + u[:, None] * (b - a) + v[:, None] * (c - a), face

    @cached_property
    def _tree(self) -> Any:
        try:
            from scipy.spatial import KDTree
        except ImportError as error:
            raise ImportError("distances to meshes need SciPy: pip install 'fewstep[three-d]'") from error
        return KDTree(self._samples[0])

    def _projected(
        self, points: Rows
    ) -> tuple[Rows, Int64[np.ndarray, " point"], Float32[np.ndarray, " point 3"]]:
        """The nearest surface points, their triangles, and their barycentric coordinates."""
        number = min(NEIGHBOURS, len(self._samples[1]))
        near = self._tree.query(points, k=number)[1].reshape(len(points), number)
        faces = self._samples[1][near]
        repeated = np.repeat(points, number, axis=0)
        weights = closest_weights(repeated, self._corners[faces.ravel()])
        found = (self._corners[faces.ravel()] * weights[..., None]).sum(1)
        length = np.linalg.norm(found - repeated, axis=1).reshape(len(points), number)
        best = np.arange(len(points)) * number + length.argmin(1)
        return found[best], faces.ravel()[best], weights[best]

    def _odd_crossings(self, cells: int, axis: int) -> Bool[np.ndarray, " corner corner corner"]:
        """Whether a ray from each corner to the low end of an axis crosses an odd number of triangles."""
        one, two = (axis + 1) % 3, (axis + 2) % 3
        scaled = (self._corners.astype(np.float64) + 0.5) * cells
        a, b = (scaled[..., along] - shift * cells for along, shift in ((one, JITTER[0]), (two, JITTER[1])))
        count = np.zeros((cells + 2, cells + 1, cells + 1), np.int64)
        for face, column, row in _covered(a, b, cells):
            inside, height = _crossings(a[face], b[face], scaled[face][..., axis], column, row)
            level = np.clip(np.ceil(height[inside]), 0, cells + 1).astype(np.int64)
            np.add.at(count, (level, column[inside], row[inside]), 1)
        odd = count.cumsum(0)[: cells + 1] % 2 == 1
        return np.moveaxis(odd, (0, 1, 2), (axis, one, two))


def _covered(
    a: Float[np.ndarray, " face 3"], b: Float[np.ndarray, " face 3"], cells: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of triangles and the columns of rays in their boxes, a chunk at a time."""
    low_a, low_b = (np.clip(np.ceil(x.min(1)), 0, cells + 1).astype(np.int64) for x in (a, b))
    high_a, high_b = (np.clip(np.floor(x.max(1)), -1, cells).astype(np.int64) for x in (a, b))
    wide, high = np.maximum(high_a - low_a + 1, 0), np.maximum(high_b - low_b + 1, 0)
    size = wide * high
    ends = size.cumsum()
    start = 0
    while start < len(size):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + CHUNK, side="right")))
        face = np.repeat(np.arange(start, stop), size[start:stop])
        place = np.arange(len(face)) - np.repeat(
            ends[start:stop] - size[start:stop] - before, size[start:stop]
        )
        yield face, low_a[face] + place // high[face], low_b[face] + place % high[face]
        start = stop


def _crossings(
    a: Float[np.ndarray, " pair 3"],
    b: Float[np.ndarray, " pair 3"],
    height: Float[np.ndarray, " pair 3"],
    column: Int64[np.ndarray, " pair"],
    row: Int64[np.ndarray, " pair"],
) -> tuple[Bool[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    """Whether a ray at (column, row) meets a triangle given in the plane across it, and at what height."""
    edges = [
        (a[:, (corner + 1) % 3] - a[:, corner]) * (row - b[:, corner])
        - (b[:, (corner + 1) % 3] - b[:, corner]) * (column - a[:, corner])
        for corner in range(3)
    ]
    total = edges[0] + edges[1] + edges[2]
    inside = np.logical_and.reduce([edge > 0 for edge in edges]) | np.logical_and.reduce(
        [edge < 0 for edge in edges]
    )
    weight = np.where(total == 0, 1, total)
    met = (edges[1] * height[:, 0] + edges[2] * height[:, 1] + edges[0] * height[:, 2]) / weight
    return inside & (total != 0), met


def closest_weights(
    points: Pairs, triangles: Float32[np.ndarray, " pair 3 3"]
) -> Float32[np.ndarray, " pair 3"]:
    """Barycentric coordinates of the point of each triangle that is closest to each point."""
    a, b, c = np.moveaxis(triangles, 1, 0)
    ab, ac, ap = b - a, c - a, points - a
    d00, d01, d11 = (ab * ab).sum(1), (ab * ac).sum(1), (ac * ac).sum(1)
    d20, d21 = (ap * ab).sum(1), (ap * ac).sum(1)
    determinant = d00 * d11 - d01 * d01
    safe = np.where(determinant > 0, determinant, 1)
    v, w = (d11 * d20 - d01 * d21) / safe, (d00 * d21 - d01 * d20) / safe
    plane = np.stack([1 - v - w, v, w], 1)
    within = (plane >= 0).all(1) & (determinant > 0)
    # outside the triangle's prism the closest point lies on one of its three sides
    sides = [_on_side(points, triangles, one, two) for one, two in ((0, 1), (1, 2), (2, 0))]
    length = np.stack([((triangles * side[..., None]).sum(1) - points) ** 2 for side in sides]).sum(-1)
    outside = np.choose(length.argmin(0)[:, None], sides)
    return np.where(within[:, None], plane, outside).astype(np.float32)


def _on_side(
    points: Pairs, triangles: Float32[np.ndarray, " pair 3 3"], one: int, two: int
) -> Float32[np.ndarray, " pair 3"]:
    start, along = triangles[:, one], triangles[:, two] - triangles[:, one]
    share = ((points - start) * along).sum(1) / np.maximum((along * along).sum(1), 1e-20)
    share = np.clip(share, 0, 1).astype(np.float32)
    weights = np.zeros((len(points), 3), np.float32)
    weights[:, one], weights[:, two] = 1 - share, share
    return weights
