"""Objects as one signed distance function each, in a canonical frame, with a material slot for every point.

The canonical frame: z up, the front towards -y, the bounding box centred at the origin with its longest edge
just under 1, so that the object lies in [-0.5, 0.5]^3.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32, Int64

from fewstep.modalities.objects.furniture import chair, lamp, sofa, table
from fewstep.modalities.objects.parts import Part
from fewstep.modalities.objects.primitives import Points
from fewstep.modalities.objects.vehicles import boat, car, duck, plane
from fewstep.modalities.objects.vessels import bottle, bowl, mug, teapot, vase

LONGEST_EDGE = 0.98

CATEGORIES = {
    "chair": chair,
    "table": table,
    "sofa": sofa,
    "lamp": lamp,
    "mug": mug,
    "teapot": teapot,
    "bottle": bottle,
    "vase": vase,
    "bowl": bowl,
    "car": car,
    "plane": plane,
    "boat": boat,
    "duck": duck,
}


@dataclass(frozen=True, eq=False)
class Shape:
    """One object of a category; `parts` are in units of their own."""

    category: str
    parts: tuple[Part, ...]

    def distance(self, points: Float[np.ndarray, " point 3"]) -> Float32[np.ndarray, " point"]:
        """Signed distance to the surface, negative inside; 1-Lipschitz and never above the true distance."""
        return self.rows_distance(np.ascontiguousarray(points.T, dtype=np.float32))

    def material(self, points: Float[np.ndarray, " point 3"]) -> Int64[np.ndarray, " point"]:
        """Index into `slots` of the nearest part's material."""
        return self.rows_material(np.ascontiguousarray(points.T, dtype=np.float32))

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """Names of the materials that occur, see `parts.SLOTS`."""
        return tuple(dict.fromkeys(part.slot for part in self.parts))

    def rows_distance(self, points: Points) -> Float32[np.ndarray, " point"]:
        """As `distance`, for contiguous float32 ``[3, point]``: the form that a ray-caster holds."""
        local = self._local(points)
        total = self.parts[0].solid.distance(local)
        for part in self.parts[1:]:
            np.minimum(total, part.solid.distance(local), out=total)
        total *= np.float32(self._scale)
        return total

    def rows_material(self, points: Points) -> Int64[np.ndarray, " point"]:
        """As `material`, for contiguous float32 ``[3, point]``."""
        local = self._local(points)
        nearest = np.argmin([part.solid.distance(local) for part in self.parts], axis=0)
        return np.array([self.slots.index(part.slot) for part in self.parts])[nearest]

    @cached_property
    def bounds(self) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
        """Lower and upper corner of a box around the object; the object stands on the lower one."""
        half = (self._box[1] - self._box[0]) / 2 * self._scale
        return -half, half

    @cached_property
    def _box(self) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
        boxes = [part.solid.bounds() for part in self.parts]
        return np.min([low for low, _ in boxes], 0), np.max([high for _, high in boxes], 0)

    @cached_property
    def _scale(self) -> float:
        return LONGEST_EDGE / float((self._box[1] - self._box[0]).max())

    def _local(self, points: Points) -> Points:
        local = points * np.float32(1 / self._scale)
        local += ((self._box[0] + self._box[1]) / 2).astype(np.float32)[:, None]
        return local


def draw_shape(category: str, rng: np.random.Generator) -> Shape:
    """A random object of one of `CATEGORIES`."""
    if category not in CATEGORIES:
        raise ValueError(f"category={category!r} is unknown; use one of {', '.join(CATEGORIES)}")
    return Shape(category, tuple(CATEGORIES[category](rng)))
