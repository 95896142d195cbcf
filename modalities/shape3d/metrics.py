"""How near meshes are to each other, and sets of meshes to sets.

Distances are in units of the unit cube that the meshes lie in; nothing is normalised here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from fewstep.modalities.objects.scene import Camera
from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.surface.cleaning import face_areas
from fewstep.modalities.shape3d.surface.rendering import seen

SURFACE_POINTS = 10_000
SET_POINTS = 2048
THRESHOLDS = (0.01, 0.02)
VIEWS = tuple(Camera(azimuth=45.0 * turn, elevation=20.0 if turn % 2 else -10.0) for turn in range(8))
VIEW_SIZE = 128

Distances = Float[np.ndarray, " one other"]


@dataclass(frozen=True)
class SurfacePoints:
    """Points spread evenly over a mesh, with the normals of their faces."""

    points: Float32[np.ndarray, " point 3"]
    normals: Float32[np.ndarray, " point 3"]


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """Of a mesh to another.

    Args:
        chamfer_l1: mean of the two mean distances to the nearest point of the other.
        chamfer_l2: likewise of squared distances, their sum.
        f_scores: harmonic mean of precision and recall, by the distance within which a point counts as met.
        normal_consistency: mean |cosine| between normals at nearest points, both ways; 1 is equal.
    """

    chamfer_l1: float
    chamfer_l2: float
    f_scores: dict[float, float]
    normal_consistency: float


def surface_points(mesh: Mesh, count: int = SURFACE_POINTS, *, seed: int = 0) -> SurfacePoints:
    """Points drawn by area.

    Raises:
        ValueError: for a mesh without area.
    """
    areas = face_areas(mesh)
    if not areas.sum() > 0:
        raise ValueError(f"a mesh of {len(mesh.faces)} faces has no area to draw points from")
    rng = np.random.default_rng(seed)
    face = rng.choice(len(areas), size=count, p=areas / areas.sum())
    u, v = rng.random((2, count, 1))
    root = np.sqrt(u)
    a, b, c = (mesh.vertices[mesh.faces[face, corner]].astype(np.float64) for corner in range(3))
    normals = np.cross(b - a, c - a)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    points = (1 - root) * a + root * (1 - v) * b + root * v * c
    return SurfacePoints(points.astype(np.float32), normals.astype(np.float32))


def closeness(found: SurfacePoints, true: SurfacePoints, *, queries: int | None = None) -> Closeness:
    """Of a mesh to the true one, by points on both.

    Args:
        queries: of either mesh, points from which the nearest one of the other is looked for; None for all.
            Fewer take less time, while many to be found keep distances small.
    """
    from scipy.spatial import KDTree

    some = slice(queries)
    there, place = map(np.asarray, KDTree(true.points).query(found.points[some], workers=-1))
    back, origin = map(np.asarray, KDTree(found.points).query(true.points[some], workers=-1))
    scores = {}
    for threshold in THRESHOLDS:
        precision, recall = float((there < threshold).mean()), float((back < threshold).mean())
        scores[threshold] = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
    cosines = (
        np.abs(np.einsum("pi,pi->p", found.normals[some], true.normals[place])).mean(),
        np.abs(np.einsum("pi,pi->p", true.normals[some], found.normals[origin])).mean(),
    )
    return Closeness(
        chamfer_l1=float(there.mean() + back.mean()) / 2,
        chamfer_l2=float((there**2).mean() + (back**2).mean()),
        f_scores=scores,
        normal_consistency=float(np.mean(cosines)),
    )


def inside(mesh: Mesh, points: Float[np.ndarray, " point 3"]) -> Bool[np.ndarray, " point"]:
    """Whether points lie in a closed mesh, by the generalised winding number (Jacobson et al., 2013).

    Exact up to rounding; time and memory grow with points times faces, in pieces.
    """
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    found = np.zeros(len(points))
    for start in range(0, len(points), 256):
        a, b, c = (
            corners[None, :, k] - points[start : start + 256, None].astype(np.float64) for k in range(3)
        )
        la, lb, lc = (np.linalg.norm(x, axis=-1) for x in (a, b, c))
        over = np.einsum("pfi,pfi->pf", a, np.cross(b, c))
        under = (
            la * lb * lc
            + np.einsum("pfi,pfi->pf", a, b) * lc
            + np.einsum("pfi,pfi->pf", b, c) * la
            + np.einsum("pfi,pfi->pf", c, a) * lb
        )
        found[start : start + 256] = np.arctan2(over, under).sum(-1) / (2 * np.pi)
    return found > 0.5


def iou(one: Bool[np.ndarray, " *shape"], other: Bool[np.ndarray, " *shape"]) -> float:
    """Intersection over union of two occupancies; 1 where both are empty."""
    union = int((one | other).sum())
    return float((one & other).sum() / union) if union else 1.0


def mask_iou(found: Mesh, true: Mesh) -> float:
    """Mean over eight fixed views of the silhouettes' intersection over union."""
    pairs = (
        (seen(found, view, size=VIEW_SIZE).mask, seen(true, view, size=VIEW_SIZE).mask) for view in VIEWS
    )
    return float(np.mean([iou(one, other) for one, other in pairs]))


@dataclass(frozen=True, kw_only=True, eq=False)
class SetScores:
    """Of generated shapes against reference shapes (Achlioptas et al., 2018; Yang et al., 2019).

    Args:
        minimum_matching_distance: mean over references of the Chamfer distance to the nearest sample.
        coverage: share of references that are the nearest one of some sample.
        nearest_neighbour_accuracy: leave-one-out accuracy of telling samples from references by the nearest
            other shape; 0.5 is ideal, 1 is told apart.
        nearest: of each sample, the number of the nearest reference.
    """

    minimum_matching_distance: float
    coverage: float
    nearest_neighbour_accuracy: float
    nearest: Int64[np.ndarray, " sample"]


def set_scores(
    samples: Sequence[SurfacePoints],
    references: Sequence[SurfacePoints],
    *,
    between_references: Distances | None = None,
) -> SetScores:
    """By Chamfer-L1 between all pairs; samples and references should be equally many, at least two each.

    Args:
        between_references: what ``chamfer_distances`` says of them, where several sets are compared with
            the same ones.

    Raises:
        ValueError: for fewer than two.
    """
    if len(samples) < 2 or len(references) < 2:
        raise ValueError(
            f"{len(samples)} samples and {len(references)} references are too few; give at least 2 of each"
        )
    if between_references is None:
        between_references = chamfer_distances(references, references)
    across = chamfer_distances(samples, references)
    distance = np.block([[chamfer_distances(samples, samples), across], [across.T, between_references]])
    count = len(samples)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argmin(1)
    right = (nearest < count) == (np.arange(len(distance)) < count)
    return SetScores(
        minimum_matching_distance=float(across.min(0).mean()),
        coverage=len(np.unique(across.argmin(1))) / len(references),
        nearest_neighbour_accuracy=float(right.mean()),
        nearest=across.argmin(1).astype(np.int64),
    )


def chamfer_distances(ones: Sequence[SurfacePoints], others: Sequence[SurfacePoints]) -> Distances:
    """Chamfer-L1 from each of some shapes to each of others."""
    from scipy.spatial import KDTree

    trees = [[KDTree(shape.points) for shape in shapes] for shapes in (ones, others)]
    found = np.zeros((len(ones), len(others)))
    for row, one in enumerate(ones):
        for column, other in enumerate(others):
            if ones is others and column <= row:
                found[row, column] = found[column, row]
                continue
            there = np.asarray(trees[1][column].query(one.points)[0]).mean()
            back = np.asarray(trees[0][row].query(other.points)[0]).mean()
            found[row, column] = (there + back) / 2
    return found


def grid_points(resolution: int) -> Float32[np.ndarray, " point 3"]:
    """Middles of the cells of a grid over [-0.5, 0.5]^3, row-major."""
    line = (np.arange(resolution) + 0.5) / resolution - 0.5
    return np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3).astype(np.float32)
