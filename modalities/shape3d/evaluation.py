"""Scores of meshes made of pictures, against the objects that the pictures show."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fewstep.modalities.shape3d.comparison import likeness
from fewstep.modalities.shape3d.held_out import OCCUPANCY, POINTS, HeldOut
from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.metrics import (
    SET_POINTS,
    SURFACE_POINTS,
    Distances,
    SetScores,
    SurfacePoints,
    chamfer_distances,
    closeness,
    iou,
    set_scores,
    surface_points,
)
from fewstep.modalities.shape3d.surface.cleaning import health
from fewstep.modalities.shape3d.surface.occupancy import occupied

MADE_SEED, TRUE_SEED = 1, 2  # of points; the true surface's own points have seed 0
THOUSANDTHS, PERCENT = 1000.0, 100.0

Scores = dict[str, float]


@dataclass(frozen=True, eq=False)
class Made:
    """A mesh as it is written to a file, and how it came about.

    Args:
        mesh: finished.
        seconds: by stage, clean-up included.
        voxels: active ones.
    """

    mesh: Mesh
    seconds: Mapping[str, float]
    voxels: int

    @cached_property
    def few_points(self) -> SurfacePoints:
        return surface_points(self.mesh, SET_POINTS, seed=MADE_SEED)


@dataclass(frozen=True, eq=False)
class Reference:
    """The objects of a test, and the distances between them."""

    objects: Sequence[HeldOut]

    @cached_property
    def points(self) -> list[SurfacePoints]:
        return [one.few_points for one in self.objects]

    @cached_property
    def distances(self) -> Distances:
        return chamfer_distances(self.points, self.points)

    def against(self, samples: Sequence[SurfacePoints]) -> SetScores:
        """The scores of a set of shapes."""
        return set_scores(samples, self.points, between_references=self.distances)


def evaluated(made: Sequence[Made | None], reference: Reference) -> Scores:
    """All scores of the meshes of all objects, None where none came out.

    A missing mesh counts as one without overlap; distances and colours are means over those that are there.
    """
    pairs = [(one, true) for one, true in zip(made, reference.objects, strict=True) if one is not None]
    if len(pairs) < 2:
        return {"made": PERCENT * len(pairs) / len(made)}
    each = [object_scores(one, true) for one, true in pairs]
    scores = {name: mean([row[name] for row in each]) for name in each[0]}
    found = reference.against([one.few_points for one, _ in pairs])
    right = [reference.objects[place].category for place in found.nearest]
    scores["category"] = PERCENT * mean(
        [float(category == true.category) for category, (_, true) in zip(right, pairs, strict=True)]
    )
    for name in ("f_score_1", "f_score_2", "occupancy_iou", "watertight", "view_iou", "category"):
        scores[name] *= len(pairs) / len(made)
    return scores | of_sets(found) | {"made": PERCENT * len(pairs) / len(made)}


def object_scores(made: Made, true: HeldOut) -> Scores:
    """Of one mesh."""
    points = surface_points(made.mesh, POINTS, seed=MADE_SEED)
    near = closeness(points, true.points, queries=SURFACE_POINTS)
    look = likeness(made.mesh, true.mesh, views=(true.scene.camera,))
    return {
        "chamfer": THOUSANDTHS * near.chamfer_l1,
        "f_score_1": PERCENT * near.f_scores[0.01],
        "f_score_2": PERCENT * near.f_scores[0.02],
        "normal_consistency": PERCENT * near.normal_consistency,
        "occupancy_iou": PERCENT * iou(occupied(made.mesh, OCCUPANCY), true.occupied),
        "watertight": PERCENT * health(made.mesh).watertight,
        "view_iou": PERCENT * look.mask_iou,
        "view_psnr": math.nan if look.colour_psnr is None else look.colour_psnr,
        "voxels": float(made.voxels),
        "faces": float(len(made.mesh.faces)),
    }


def best_possible(reference: Reference, others: Sequence[HeldOut]) -> Scores:
    """What no model can beat: the true surfaces by other points, and other true objects as a set."""
    near = [
        closeness(surface_points(one.mesh, POINTS, seed=TRUE_SEED), one.points, queries=SURFACE_POINTS)
        for one in reference.objects
    ]
    return {
        "chamfer": THOUSANDTHS * mean([one.chamfer_l1 for one in near]),
        "f_score_1": PERCENT * mean([one.f_scores[0.01] for one in near]),
        "f_score_2": PERCENT * mean([one.f_scores[0.02] for one in near]),
        "normal_consistency": PERCENT * mean([one.normal_consistency for one in near]),
        **of_sets(reference.against([one.few_points for one in others])),
    }


def of_sets(found: SetScores) -> Scores:
    return {
        "coverage": PERCENT * found.coverage,
        "nearest_neighbour_accuracy": PERCENT * found.nearest_neighbour_accuracy,
    }


def mean(values: Sequence[float]) -> float:
    """Of those that are numbers."""
    kept = [value for value in values if math.isfinite(value)]
    return float(np.mean(kept)) if kept else math.nan
