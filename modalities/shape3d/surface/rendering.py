"""Pictures of meshes without a graphics card, for sheets and metrics: a depth buffer in numpy."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8

from fewstep.modalities.objects.scene import Camera
from fewstep.modalities.shape3d.mesh_file import Mesh, linear_light, srgb
from fewstep.modalities.shape3d.surface.texture import barycentric

SAMPLES = 2  # per pixel and axis
PAPER = (0.93, 0.94, 0.95)
CLAY = 0.62
EYE = 2.6  # distance of the eye, in units of the unit cube that the mesh lies in
WIDTH = 0.36  # half the picture's width at distance 1
KEY, FILL = (0.35, 0.55, 0.76), (-0.75, 0.1, 0.65)  # towards the lights: to the right, up, to the eye


@dataclass(frozen=True, eq=False)
class View:
    """What a camera sees of a mesh.

    Args:
        face: number of the face in every pixel, -1 for none.
        weights: of that face's corners.
        depth: distance along the view, infinite where there is nothing.
    """

    face: Int64[np.ndarray, " row column"]
    weights: Float32[np.ndarray, " row column 3"]
    depth: Float32[np.ndarray, " row column"]

    @property
    def mask(self) -> Bool[np.ndarray, " row column"]:
        return self.face >= 0


def seen(mesh: Mesh, camera: Camera, *, size: int) -> View:
    """The nearest face in every pixel, in perspective."""
    axes = camera.axes.astype(np.float64)
    local = mesh.vertices.astype(np.float64) @ axes.T  # to the right, up, to the eye
    distance = EYE - local[:, 2]
    scale = size / (2 * WIDTH)
    plane = np.stack(
        [size / 2 - 0.5 + scale * local[:, 0] / distance, size / 2 - 0.5 - scale * local[:, 1] / distance], -1
    )
    corners = plane[mesh.faces]
    low = np.clip(np.ceil(corners.min(1)), 0, size).astype(np.int64)
    high = np.clip(np.floor(corners.max(1)), -1, size - 1).astype(np.int64)
    extent = np.maximum(high - low + 1, 0)
    count = extent.prod(1)
    face = np.repeat(np.arange(len(mesh.faces)), count)
    offset = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
    column = low[face, 0] + offset % np.maximum(extent[face, 0], 1)
    row = low[face, 1] + offset // np.maximum(extent[face, 0], 1)
    weights = barycentric(corners[face], np.stack([column, row], -1))
    inside = (weights >= 0).all(-1)
    face, row, column, weights = face[inside], row[inside], column[inside], weights[inside]
    # in perspective the inverse of the distance is linear on the picture
    weights = weights / distance[mesh.faces[face]]
    depth = 1 / weights.sum(-1)
    weights *= depth[:, None]
    # far to near, so that the nearest is written last
    order = np.argsort(-depth, kind="stable")
    pixel = (row * size + column)[order]
    found = np.full(size * size, -1, np.int64)
    share = np.zeros((size * size, 3), np.float32)
    far = np.full(size * size, np.inf, np.float32)
    found[pixel], share[pixel], far[pixel] = face[order], weights[order], depth[order]
    return View(found.reshape(size, size), share.reshape(size, size, 3), far.reshape(size, size))


def rendered(mesh: Mesh, camera: Camera, *, size: int = 256) -> UInt8[np.ndarray, " size size 3"]:
    """The mesh in its colours under two lights beside the eye, on light paper; sRGB."""
    fine = size * SAMPLES
    view = seen(mesh, camera, size=fine)
    picture = np.broadcast_to(linear_light(np.array(PAPER)), (fine, fine, 3)).copy()
    if view.mask.any():
        corners = mesh.faces[view.face[view.mask]]
        share = view.weights[view.mask][:, :, None]
        normal = (mesh.normals[corners] * share).sum(1) @ camera.axes.T
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        picture[view.mask] = _base(mesh, corners, share) * _light(normal)[:, None]
    pooled = picture.reshape(size, SAMPLES, size, SAMPLES, 3).mean((1, 3))
    return np.round(np.clip(srgb(pooled), 0, 1) * 255).astype(np.uint8)


def _base(
    mesh: Mesh, corners: Int64[np.ndarray, " pixel 3"], share: Float32[np.ndarray, " pixel 3 1"]
) -> Float[np.ndarray, " pixel 3"]:
    """Colours of the surface, in linear light."""
    if mesh.texture is not None:
        height, width = mesh.texture.picture.shape[:2]
        uv = (mesh.texture.uvs[corners] * share).sum(1)
        column = np.clip((uv[:, 0] * width).astype(np.int64), 0, width - 1)
        row = np.clip((uv[:, 1] * height).astype(np.int64), 0, height - 1)
        return linear_light(mesh.texture.picture[row, column] / 255)
    if mesh.colours is None:
        return np.full((len(corners), 3), linear_light(np.array(CLAY)))
    return linear_light(np.clip((mesh.colours[corners] * share).sum(1), 0, 1))


def _light(normal: Float[np.ndarray, " pixel 3"]) -> Float[np.ndarray, " pixel"]:
    key, fill = (np.maximum(normal @ (np.array(way) / np.linalg.norm(way)), 0) for way in (KEY, FILL))
    return 0.8 * key + 0.22 * fill + 0.18 * (0.5 + 0.5 * normal[:, 1]) + 0.06
