"""Two meshes compared by the space that they take up and by how they look; see ``metrics`` for distances."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fewstep.modalities.objects.scene import Camera
from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.metrics import VIEW_SIZE, VIEWS, iou
from fewstep.modalities.shape3d.surface.cleaning import health
from fewstep.modalities.shape3d.surface.occupancy import occupied, passed
from fewstep.modalities.shape3d.surface.rendering import View, seen

RESOLUTION = 64


def volume_iou(found: Mesh, true: Mesh, *, resolution: int = RESOLUTION) -> float:
    """Intersection over union of the cells whose middles lie in closed meshes.

    Raises:
        ValueError: where one is not watertight; compare such by ``surface_iou``.
    """
    for name, mesh in (("found", found), ("true", true)):
        if not health(mesh).watertight:
            raise ValueError(f"{name} is not watertight and holds no volume; compare by surface_iou")
    return iou(occupied(found, resolution), occupied(true, resolution))


def surface_iou(found: Mesh, true: Mesh, *, resolution: int = RESOLUTION) -> float:
    """Intersection over union of the cells that the surfaces pass."""
    return iou(passed(found, resolution), passed(true, resolution))


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Of a mesh to the true one over several views; all but the first over pixels where both are seen.

    Args:
        mask_iou: mean over views of the silhouettes' intersection over union.
        depth_l1: mean difference of the distances along the view.
        normal_degrees: mean angle between smooth normals.
        colour_psnr: peak signal-to-noise ratio in dB of the colours without light, sRGB, infinite for equal
            ones; None where a mesh has no vertex colours.

    Where the meshes are never seen in the same pixel, the last three are not numbers.
    """

    mask_iou: float
    depth_l1: float
    normal_degrees: float
    colour_psnr: float | None


def likeness(found: Mesh, true: Mesh, *, views: Sequence[Camera] = VIEWS, size: int = VIEW_SIZE) -> Likeness:
    """Looks at both from the same places; views are ``size`` pixels wide and high."""
    coloured = found.colours is not None and true.colours is not None
    ious, depths, angles, errors = [], [], [], []
    for camera in views:
        one, other = seen(found, camera, size=size), seen(true, camera, size=size)
        both = one.mask & other.mask
        ious.append(iou(one.mask, other.mask))
        depths.append(np.abs(one.depth[both] - other.depth[both]))
        a, b = (_at_pixels(mesh, view, mesh.normals)[both] for mesh, view in ((found, one), (true, other)))
        cosine = (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)
        angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        if found.colours is not None and true.colours is not None:
            painted = _at_pixels(found, one, found.colours), _at_pixels(true, other, true.colours)
            errors.append(((painted[0] - painted[1])[both] ** 2).mean(-1))
    return Likeness(
        mask_iou=float(np.mean(ious)),
        depth_l1=_mean(depths),
        normal_degrees=_mean(angles),
        colour_psnr=_psnr(_mean(errors)) if coloured else None,
    )


def _at_pixels(
    mesh: Mesh, view: View, values: Float[np.ndarray, " vertex 3"]
) -> Float[np.ndarray, " row column 3"]:
    """Values of vertices at what is seen; of any face where nothing is."""
    return (values[mesh.faces[view.face]] * view.weights[..., None]).sum(-2)


def _mean(parts: Sequence[Float[np.ndarray, " _"]]) -> float:
    joined = np.concatenate(parts)
    return float(joined.mean()) if len(joined) else math.nan


def _psnr(squared_error: float) -> float:
    return math.inf if squared_error == 0 else -10 * math.log10(squared_error)
