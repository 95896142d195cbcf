"""Solids as signed distance functions: negative inside, and never more than the true distance outside.

Every function is 1-Lipschitz, so a sphere tracer cannot step through a surface. Points are ``[3, point]`` in
float32, one contiguous row per axis; z points up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32

Points = Float32[np.ndarray, " 3 point"]
Distances = Float32[np.ndarray, " point"]
Number = float | int
Vector = tuple[Number, Number, Number]
Bounds = tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]


@runtime_checkable
class Solid(Protocol):
    """A signed distance function with a box that contains its inside."""

    def distance(self, points: Points) -> Distances: ...

    def bounds(self) -> Bounds: ...


def _length(one: Distances, two: Distances) -> Distances:
    return np.sqrt(one * one + two * two)  # several times faster than np.hypot, and nothing overflows here


@dataclass(frozen=True)
class Box:
    """A box with edges rounded by ``radius``, centred at the origin; ``half`` includes the rounding."""

    half: Vector
    radius: Number = 0.0

    def distance(self, points: Points) -> Distances:
        q = np.abs(points)
        q -= np.array(self.half, np.float32)[:, None] - np.float32(self.radius)
        inside = np.minimum(np.maximum(np.maximum(q[0], q[1]), q[2]), 0)
        np.maximum(q, 0, out=q)
        q *= q
        return np.sqrt(q[0] + q[1] + q[2]) + (inside - np.float32(self.radius))

    def bounds(self) -> Bounds:
        half = np.array(self.half, float)
        return -half, half


@dataclass(frozen=True)
class Capsule:
    """All points within ``radius`` of the segment from ``start`` to ``end``."""

    start: Vector
    end: Vector
    radius: Number

    def distance(self, points: Points) -> Distances:
        start, end = np.array(self.start, np.float32), np.array(self.end, np.float32)
        along = end - start
        p = points - start[:, None]
        h = np.clip((along / (along @ along)) @ p, 0, 1)
        p -= along[:, None] * h
        p *= p
        return np.sqrt(p[0] + p[1] + p[2]) - np.float32(self.radius)

    def bounds(self) -> Bounds:
        ends = np.array([self.start, self.end], float)
        return ends.min(0) - self.radius, ends.max(0) + self.radius


@dataclass(frozen=True)
class Cylinder:
    """An upright cylinder centred at the origin; ``radius`` and ``half_height`` include the rounding."""

    radius: Number
    half_height: Number
    rounding: Number = 0.0

    def distance(self, points: Points) -> Distances:
        across = _length(points[0], points[1]) - np.float32(self.radius - self.rounding)
        along = np.abs(points[2]) - np.float32(self.half_height - self.rounding)
        inside = np.minimum(np.maximum(across, along), 0)
        return _length(np.maximum(across, 0), np.maximum(along, 0)) + (inside - np.float32(self.rounding))

    def bounds(self) -> Bounds:
        half = np.array([self.radius, self.radius, self.half_height], float)
        return -half, half


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid centred at the origin; far from a flat one the distance is a low bound."""

    radii: Vector

    def distance(self, points: Points) -> Distances:
        q = points / np.array(self.radii, np.float32)[:, None]
        q *= q
        return (np.sqrt(q[0] + q[1] + q[2]) - 1) * np.float32(min(self.radii))

    def bounds(self) -> Bounds:
        radii = np.array(self.radii, float)
        return -radii, radii


@dataclass(frozen=True)
class Torus:
    """A ring around the y axis, centred at the origin, of a tube of radius ``tube``."""

    radius: Number
    tube: Number

    def distance(self, points: Points) -> Distances:
        across = _length(points[0], points[2]) - np.float32(self.radius)
        return _length(across, points[1]) - np.float32(self.tube)

    def bounds(self) -> Bounds:
        reach = self.radius + self.tube
        half = np.array([reach, self.tube, reach], float)
        return -half, half


@dataclass(frozen=True, eq=False)
class Revolved:
    """A solid of revolution around the z axis: radius ``radii[i]`` at ``heights[i]``, straight in between.

    With ``wall`` it is a vessel: hollow above ``floor``, open at the top.
    """

    heights: Float[np.ndarray, " knot"]
    radii: Float[np.ndarray, " knot"]
    wall: Number = 0.0
    floor: Number = 0.0

    def distance(self, points: Points) -> Distances:
        low, high = np.float32(self.heights[0]), np.float32(self.heights[-1])
        steepest = float(np.abs(np.diff(self.radii) / np.diff(self.heights)).max())
        shrink = np.float32(1 / np.sqrt(1 + steepest**2))  # makes the slanted wall 1-Lipschitz
        height = points[2]
        profile = np.interp(height, self.heights, self.radii).astype(np.float32)
        side = (_length(points[0], points[1]) - profile) * shrink
        outer = np.maximum(side, np.maximum(low - height, height - high))
        if self.wall == 0:
            return outer
        cavity = np.maximum(side + np.float32(self.wall) * shrink, np.float32(self.floor) - height)
        return np.maximum(outer, -cavity)

    def bounds(self) -> Bounds:
        reach = float(self.radii.max())
        return np.array([-reach, -reach, self.heights[0]]), np.array([reach, reach, self.heights[-1]])


@dataclass(frozen=True, eq=False)
class Polytope:
    """A convex solid: all points with ``normals @ point <= offsets``; the normals have length 1."""

    normals: Float[np.ndarray, " face 3"]
    offsets: Float[np.ndarray, " face"]
    box: Bounds

    def distance(self, points: Points) -> Distances:
        return (self.normals.astype(np.float32) @ points - self.offsets.astype(np.float32)[:, None]).max(0)

    def bounds(self) -> Bounds:
        return self.box


@dataclass(frozen=True, eq=False)
class Moved:
    """A solid turned by the columns of ``rotation``, then moved by ``offset``."""

    solid: Solid
    offset: Vector
    rotation: Float[np.ndarray, " 3 3"] | None = None

    def distance(self, points: Points) -> Distances:
        local = points - np.array(self.offset, np.float32)[:, None]
        if self.rotation is not None:
            local = self.rotation.T.astype(np.float32) @ local
        return self.solid.distance(local)

    def bounds(self) -> Bounds:
        low, high = self.solid.bounds()
        if self.rotation is not None:
            centre, half = (low + high) / 2, (high - low) / 2
            centre, half = self.rotation @ centre, np.abs(self.rotation) @ half
            low, high = centre - half, centre + half
        return low + np.array(self.offset), high + np.array(self.offset)


@dataclass(frozen=True, eq=False)
class Mirrored:
    """A solid and its mirror image in each of ``axes``; one evaluation serves all copies."""

    solid: Solid
    axes: tuple[int, ...] = (0,)

    def distance(self, points: Points) -> Distances:
        folded = points.copy()
        for axis in self.axes:
            np.abs(folded[axis], out=folded[axis])
        return self.solid.distance(folded)

    def bounds(self) -> Bounds:
        low, high = (bound.copy() for bound in self.solid.bounds())
        for axis in self.axes:
            high[axis] = max(high[axis], -low[axis])
            low[axis] = -high[axis]
        return low, high


@dataclass(frozen=True, eq=False)
class Blend:
    """The union of solids; where two surfaces are closer than ``width`` they melt into each other.

    The box is that of the plain union: a melted seam swells inwards of it in all shapes that stand here.
    """

    solids: tuple[Solid, ...]
    width: Number = 0.0

    def distance(self, points: Points) -> Distances:
        total = self.solids[0].distance(points)
        for solid in self.solids[1:]:
            other = solid.distance(points)
            if self.width > 0:
                overlap = np.maximum(np.float32(self.width) - np.abs(total - other), 0)
                overlap *= overlap
                overlap *= np.float32(0.25 / self.width)
                np.minimum(total, other, out=total)
                total -= overlap
            else:
                np.minimum(total, other, out=total)
        return total

    def bounds(self) -> Bounds:
        pairs = [solid.bounds() for solid in self.solids]
        return np.min([low for low, _ in pairs], 0), np.max([high for _, high in pairs], 0)


@dataclass(frozen=True, eq=False)
class Cut:
    """``solid`` without ``tool``."""

    solid: Solid
    tool: Solid

    def distance(self, points: Points) -> Distances:
        return np.maximum(self.solid.distance(points), -self.tool.distance(points))

    def bounds(self) -> Bounds:
        return self.solid.bounds()


@dataclass(frozen=True, eq=False)
class Below:
    """The part of ``solid`` under ``height``."""

    solid: Solid
    height: Number

    def distance(self, points: Points) -> Distances:
        return np.maximum(self.solid.distance(points), points[2] - np.float32(self.height))

    def bounds(self) -> Bounds:
        low, high = self.solid.bounds()
        return low, np.array([high[0], high[1], min(high[2], self.height)])


def turned(axis: int, degrees: Number) -> Float[np.ndarray, " 3 3"]:
    """The rotation by ``degrees`` around one axis, right-handed."""
    angle = np.deg2rad(degrees)
    one, two = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[one, one] = matrix[two, two] = np.cos(angle)
    matrix[one, two], matrix[two, one] = -np.sin(angle), np.sin(angle)
    return matrix


def prism(outline: Sequence[tuple[Number, Number]], half_depth: Number, *, axis: int) -> Polytope:
    """A convex polygon, corners counter-clockwise in the plane of the other two axes in their cyclic order
    (axis 0: y, z; axis 1: z, x; axis 2: x, y), extruded to both sides along ``axis``."""
    one, two = (axis + 1) % 3, (axis + 2) % 3
    normals, points = [], []
    for (a, b), (c, d) in zip(outline, [*outline[1:], outline[0]], strict=True):
        normal, point = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
        normal[one], normal[two] = d - b, a - c
        point[one], point[two] = a, b
        normals.append(normal)
        points.append(point)
    for side in (-1.0, 1.0):
        cap = [0.0, 0.0, 0.0]
        cap[axis] = side
        normals.append(cap)
        points.append([value * half_depth for value in cap])
    corners = np.array(outline)
    low, high = np.zeros(3), np.zeros(3)
    low[[one, two]], high[[one, two]] = corners.min(0), corners.max(0)
    low[axis], high[axis] = -half_depth, half_depth
    unit = np.array(normals) / np.linalg.norm(np.array(normals), axis=1, keepdims=True)
    return Polytope(unit, (unit * np.array(points)).sum(1), (low, high))
