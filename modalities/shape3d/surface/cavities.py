"""Walls within an object, which no one sees."""

import numpy as np

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.surface.cleaning import with_faces
from fewstep.modalities.shape3d.surface.connectivity import connectivity


def without_cavities(mesh: Mesh) -> Mesh:
    """The mesh without closed pieces that are turned inwards; for meshes as they are extracted.

    A decoder speaks of the cells near the surface only. Those further in count as outside, so that a solid
    object comes out hollow, with a second wall around its inside: about a third of all faces. Use it before
    pieces are turned outwards, simplified or textured. A wall that is joined to the outer surface by a hole
    stays, and so does an open piece.
    """
    if not len(mesh.faces):
        return mesh
    piece, count = connectivity(mesh).components
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].astype(np.float64) for corner in range(3))
    volume = np.bincount(piece, np.einsum("fi,fi->f", a, np.cross(b, c)), count)
    is_open = np.bincount(piece[connectivity(mesh).open_edges[1]], minlength=count) > 0
    cavity = (volume < 0) & ~is_open
    if cavity.all():  # turned inside out: there is nothing around
        return mesh
    return mesh if not cavity.any() else with_faces(mesh, ~cavity[piece])
