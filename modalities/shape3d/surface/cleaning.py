"""What is wrong with a mesh, and its small repairs: loose pieces, degenerate faces, unused vertices."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from fewstep.modalities.shape3d.mesh_file import Mesh, Texture
from fewstep.modalities.shape3d.surface.connectivity import (
    connectivity,
    directed_edges,
    edge_codes,
    renumbered,
)

SMALLEST_SHARE = 0.005  # of the area: what is smaller floats beside the object


@dataclass(frozen=True, kw_only=True)
class Health:
    """A report on a mesh, its vertices welded where they lie at the same place.

    Args:
        watertight: every edge belongs to two faces that run along it in opposite directions.
        components: connected pieces.
        largest_share: of the area, of the largest piece.
        degenerate: faces without area.
        euler: vertices - edges + faces: 2 for each closed piece without holes through it.
        volume: enclosed, with the sign of the faces' orientation.
    """

    vertices: int
    faces: int
    watertight: bool
    components: int
    largest_share: float
    degenerate: int
    euler: int
    volume: float


def health(mesh: Mesh) -> Health:
    """Look at a mesh."""
    faces = connectivity(mesh).faces
    areas = face_areas(mesh)
    there, _ = directed_edges(faces)
    forth, back = edge_codes(there)
    piece, count = connectivity(mesh).components
    total = float(areas.sum())
    shares = np.bincount(piece, weights=areas, minlength=max(count, 1))
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    edges = len(np.unique(np.sort(there, axis=1), axis=0))
    return Health(
        vertices=len(mesh.vertices),
        faces=len(faces),
        watertight=len(faces) > 0 and bool((np.diff(forth) > 0).all()) and np.array_equal(forth, back),
        components=count,
        largest_share=float(shares.max()) / total if total > 0 else 0.0,
        degenerate=int((areas <= 0).sum()),
        euler=len(np.unique(faces)) - edges + len(faces),
        volume=float(np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6),
    )


def cleaned(mesh: Mesh, *, smallest_share: float = SMALLEST_SHARE) -> Mesh:
    """The mesh without pieces below a share of the area, faces without area, and vertices without faces.

    Raises:
        ValueError: for a share outside [0, 1).
    """
    if not 0 <= smallest_share < 1:
        raise ValueError(f"smallest_share={smallest_share} must lie in [0, 1); 0 keeps every piece")
    if not len(mesh.faces):
        return mesh
    areas = face_areas(mesh)
    piece, count = connectivity(mesh).components
    shares = np.bincount(piece, weights=areas, minlength=count) / max(float(areas.sum()), 1e-300)
    return with_faces(mesh, (shares[piece] >= smallest_share) & ~_pointlike(mesh))


def with_faces(mesh: Mesh, keep: Bool[np.ndarray, " face"]) -> Mesh:
    """Only these faces, and the vertices that they need; the mesh itself where that is all of it."""
    used, faces = renumbered(mesh.faces[keep], len(mesh.vertices))
    if len(faces) == len(mesh.faces) and len(used) == len(mesh.vertices):
        return mesh
    texture = mesh.texture
    return Mesh(
        mesh.vertices[used],
        faces,
        None if mesh.colours is None else mesh.colours[used],
        None if texture is None else Texture(texture.uvs[used], texture.picture),
    )


def face_areas(mesh: Mesh) -> Float[np.ndarray, " face"]:
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].astype(np.float64) for corner in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def _pointlike(mesh: Mesh) -> Bool[np.ndarray, " face"]:
    """Faces with two corners at one place: dropping them leaves no hole, unlike other faces without area."""
    faces = connectivity(mesh).faces
    return (faces == np.roll(faces, 1, axis=1)).any(axis=1)
