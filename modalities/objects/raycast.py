"""Sphere tracing in numpy: where rays meet a shape, which way its surface faces, what it shades.

Sphere tracing: Hart, "Sphere tracing", The Visual Computer 12, 1996. All rays of a call walk together and
leave the batch when they have hit or left the shape's box.
"""

import numpy as np
from jaxtyping import Float, Float32

from fewstep.modalities.objects.primitives import Distances, Points
from fewstep.modalities.objects.shapes import Shape

Rays = Float32[np.ndarray, " 3 #point"]  # one for all points, or one each

TOLERANCE = 0.002  # a tenth of a pixel's width at 64 pixels
STEPS = 56
COMPACT_EVERY = 3
SHADOW_STEPS = 16
NORMAL_STEP = 0.003
TETRAHEDRON = np.array([[1, 1, -1, -1], [-1, 1, 1, -1], [-1, 1, -1, 1]], np.float32)


def box_span(
    origins: Rays, directions: Rays, bounds: tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]
) -> tuple[Distances, Distances]:
    """Where rays enter and leave a box; a ray that misses it enters after it leaves."""
    inverse = 1 / np.where(np.abs(directions) < 1e-9, np.float32(1e-9), directions)
    one = (bounds[0].astype(np.float32)[:, None] - origins) * inverse
    two = (bounds[1].astype(np.float32)[:, None] - origins) * inverse
    near, far = np.minimum(one, two).max(0), np.maximum(one, two).min(0)
    return np.maximum(near, 0), far


def trace(shape: Shape, origins: Rays, directions: Points) -> Distances:
    """Distance along unit ``directions`` to the first surface point, infinity where there is none.

    Args:
        origins: ``[3, ray]``, or ``[3, 1]`` for rays from one point.
    """
    low, high = shape.bounds
    near, far = box_span(origins, directions, (low - 0.01, high + 0.01))
    result = np.full(directions.shape[1], np.inf, np.float32)
    rays = np.flatnonzero(near < far)
    origins = np.broadcast_to(origins, directions.shape)[:, rays]
    directions, t, far = directions[:, rays], near[rays], far[rays]
    for step in range(STEPS):
        if len(rays) == 0:
            break
        distance = shape.rows_distance(origins + directions * t)
        t = t + distance
        if step % COMPACT_EVERY and step + 1 < STEPS:
            continue
        hit, missed = distance < TOLERANCE, t > far
        result[rays[hit & ~missed]] = t[hit & ~missed]
        walking = ~(hit | missed)
        rays, origins, directions = rays[walking], origins[:, walking], directions[:, walking]
        t, far = t[walking], far[walking]
    return result


def normals(shape: Shape, points: Points) -> Points:
    """Outward unit normals from four evaluations on a tetrahedron around each point."""
    total = np.zeros_like(points)
    for corner in TETRAHEDRON.T[:, :, None]:
        total += corner * shape.rows_distance(points + np.float32(NORMAL_STEP) * corner)
    return total / np.maximum(np.sqrt((total * total).sum(0)), np.float32(1e-12))


def light_reaching(
    shape: Shape, points: Points, direction: Float32[np.ndarray, " 3"], *, softness: float
) -> Distances:
    """The part of a wide light, 0 to 1, that the shape lets through to each point.

    ``softness`` is the light's size over its distance. A ray that passes the surface at distance d after a
    length t sees the light covered by about ``1 - d / (softness t)``.
    """
    lit = np.ones(points.shape[1], np.float32)
    toward = np.broadcast_to(direction[:, None], points.shape)
    near, far = box_span(points, toward, (shape.bounds[0] - softness, shape.bounds[1] + softness))
    rays = np.flatnonzero(near < far)
    if len(rays) == 0:
        return lit
    start, t, far = points[:, rays], np.maximum(near[rays], np.float32(0.012)), far[rays]
    open_part = np.ones(len(rays), np.float32)
    shortest = (far - t) / SHADOW_STEPS  # a ray along a surface still arrives in the given steps
    for _ in range(SHADOW_STEPS):
        distance = shape.rows_distance(start + direction[:, None] * t)
        inside = t < far
        open_part = np.where(inside, np.minimum(open_part, distance / (softness * t)), open_part)
        t = t + np.maximum(distance, shortest)
    open_part = np.clip(open_part, 0, 1)
    lit[rays] = open_part * open_part * (3 - 2 * open_part)
    return lit


def openness(shape: Shape, points: Points, normal: Points) -> Distances:
    """A cheap measure, 0 to 1, of how free the space over a surface point is; 1 on a convex surface."""
    covered = np.zeros(points.shape[1], np.float32)
    for height, weight in ((0.05, 0.6), (0.13, 0.4)):
        gap = shape.rows_distance(points + normal * np.float32(height)) / np.float32(height)
        covered += np.float32(weight) * np.clip(1 - gap, 0, 1)
    return 1 - covered
