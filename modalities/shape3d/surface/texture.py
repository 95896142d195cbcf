"""Texture coordinates by xatlas, and colours baked from a finer mesh of the same object."""

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from fewstep.modalities.shape3d.mesh_file import INSTALL, Mesh, Texture

MOST_FACES = 60_000  # xatlas takes minutes beyond
NEAREST = 3  # vertices of the finer mesh that a texel's colour is a mean of


def textured(mesh: Mesh, *, size: int = 1024, source: Mesh | None = None) -> Mesh:
    """The mesh with a texture in place of vertex colours.

    Args:
        size: pixels per side of the texture.
        source: a finer mesh of the same object to take colours from; the mesh itself by default.

    Raises:
        ValueError: for a size below 16, too many faces, or a source without colours.
        ImportError: naming what to install.
    """
    source = mesh if source is None else source
    if size < 16:
        raise ValueError(f"size={size} is too small for a texture; use 256 to 4096")
    if len(mesh.faces) > MOST_FACES:
        raise ValueError(
            f"{len(mesh.faces)} faces are too many to unwrap; simplify to at most {MOST_FACES} before"
        )
    if source.colours is None:
        raise ValueError("there are no colours to bake; give vertex colours")
    try:
        import xatlas
    except ImportError as error:
        raise ImportError(f"a texture needs xatlas: {INSTALL}") from error
    from scipy.spatial import KDTree

    copies, faces, uvs = xatlas.parametrize(mesh.vertices, mesh.faces.astype(np.uint32))
    vertices, faces = mesh.vertices[copies], faces.astype(np.int64)
    place, covered = texel_positions(vertices, faces, uvs, size)
    distance, nearest = KDTree(source.vertices).query(place[covered], k=min(NEAREST, len(source.vertices)))
    weight = 1 / (np.asarray(distance).reshape(covered.sum(), -1) + 1e-6)
    colours = source.colours[np.asarray(nearest).reshape(weight.shape)]
    picture = np.zeros((size, size, 3), np.float32)
    picture[covered] = (weight[..., None] * colours).sum(1) / weight.sum(1, keepdims=True)
    painted = np.round(np.clip(dilated(picture, covered), 0, 1) * 255).astype(np.uint8)
    return Mesh(vertices, faces, texture=Texture(uvs.astype(np.float32), painted))


def texel_positions(
    vertices: Float32[np.ndarray, " vertex 3"],
    faces: Int64[np.ndarray, " face 3"],
    uvs: Float32[np.ndarray, " vertex 2"],
    size: int,
) -> tuple[Float[np.ndarray, " size size 3"], Bool[np.ndarray, " size size"]]:
    """Where the middle of each texel lies on the surface, and which texels a face covers."""
    corners = uvs[faces].astype(np.float64) * size - 0.5  # in texels, whose middles lie at whole numbers
    low = np.clip(np.ceil(corners.min(1) - 1e-9), 0, size - 1).astype(np.int64)
    high = np.clip(np.floor(corners.max(1) + 1e-9), 0, size - 1).astype(np.int64)
    extent = np.maximum(high - low + 1, 0)
    count = extent.prod(1)
    face = np.repeat(np.arange(len(faces)), count)
    offset = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
    column = low[face, 0] + offset % np.maximum(extent[face, 0], 1)
    row = low[face, 1] + offset // np.maximum(extent[face, 0], 1)
    weights = barycentric(corners[face], np.stack([column, row], -1))
    inside = (weights >= -1e-9).all(-1)
    face, row, column, weights = face[inside], row[inside], column[inside], weights[inside]
    place = np.zeros((size, size, 3))
    covered = np.zeros((size, size), bool)
    place[row, column] = np.einsum("tc,tcd->td", weights, vertices[faces[face]])
    covered[row, column] = True
    return place, covered


def barycentric(
    corners: Float[np.ndarray, " point 3 2"], points: Int64[np.ndarray, " point 2"]
) -> Float[np.ndarray, " point 3"]:
    """Weights of a plane triangle's corners; those of a triangle without area are -1."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    u, v, w = b - a, c - a, points - a
    area = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    safe = np.where(area == 0, 1, area)
    second = (w[:, 0] * v[:, 1] - w[:, 1] * v[:, 0]) / safe
    third = (u[:, 0] * w[:, 1] - u[:, 1] * w[:, 0]) / safe
    found = np.stack([1 - second - third, second, third], -1)
    return np.where((area == 0)[:, None], -1.0, found)


def dilated(
    picture: Float[np.ndarray, " height width 3"], covered: Bool[np.ndarray, " height width"]
) -> Float[np.ndarray, " height width 3"]:
    """Every texel outside the charts takes the colour of the nearest one inside, so that none bleeds in."""
    from scipy.ndimage import distance_transform_edt

    if not covered.any():
        return picture
    nearest = np.asarray(distance_transform_edt(~covered, return_distances=False, return_indices=True))
    return picture[nearest[0], nearest[1]]
