"""Walls within an object, which no one sees."""

import numpy as np

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.surface.cleaning import by_place, components, with_faces


def without_cavities(mesh: Mesh) -> Mesh:
    """The mesh without closed pieces that are turned inwards; for meshes as they are extracted.

    A decoder speaks of the cells near the surface only. Those further in count as outside, so that a solid
    object comes out hollow, with a second wall around its inside: about a third of all faces. Use it before
    pieces are turned outwards, simplified or textured. A wall that is joined to the outer surface by a hole
    stays, and so does an open piece.
    """
    if not len(mesh.faces):
        return mesh
    faces = by_place(mesh)
    piece, count = components(faces)
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].astype(np.float64) for corner in range(3))
    volume = np.bincount(piece, np.einsum("fi,fi->f", a, np.cross(b, c)), count)
    there = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    size = int(faces.max()) + 1
    alone = ~np.isin(there @ [size, 1], there @ [1, size])
    is_open = np.bincount(np.tile(piece, 3)[alone], minlength=count) > 0
    cavity = (volume < 0) & ~is_open
    if cavity.all():  # turned inside out: there is nothing around
        return mesh
    return mesh if not cavity.any() else with_faces(mesh, ~cavity[piece])
