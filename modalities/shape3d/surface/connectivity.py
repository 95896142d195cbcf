"""How the faces of a mesh hang together."""

from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Int64

from fewstep.modalities.shape3d.mesh_file import Mesh

Faces = Int64[np.ndarray, " face 3"]
Ends = Int64[np.ndarray, " edge 2"]
OfFaces = Int64[np.ndarray, " face"]
OfEdges = Int64[np.ndarray, " edge"]


class Connectivity:
    """Of one mesh, its vertices welded where they lie at the same place: seams of a texture part vertices,
    not the surface. Each thing is found when it is first asked for.

    Args:
        mesh: whose arrays are not to change.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.faces = _by_place(mesh)

    @cached_property
    def components(self) -> tuple[OfFaces, int]:
        """See ``components``."""
        return components(self.faces)

    @cached_property
    def open_edges(self) -> tuple[Ends, OfEdges]:
        """See ``open_edges``."""
        return open_edges(self.faces)


_known: "WeakKeyDictionary[Mesh, Connectivity]" = WeakKeyDictionary()


def connectivity(mesh: Mesh) -> Connectivity:
    """Found once for each mesh, since one repair after another asks for it."""
    if mesh not in _known:
        _known[mesh] = Connectivity(mesh)
    return _known[mesh]


def components(faces: Faces) -> tuple[OfFaces, int]:
    """The connected piece of each face, and how many there are."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(faces):
        return np.zeros(0, np.int64), 0
    size = int(faces.max()) + 1
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(size, size))
    of_vertices = connected_components(graph, directed=False)[1]
    found, piece = renumbered(of_vertices[faces[:, 0]].astype(np.int64), size)
    return piece, len(found)


def directed_edges(faces: Faces) -> tuple[Ends, OfEdges]:
    """The edges of all faces in the direction in which each runs, and their faces."""
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return ends, np.tile(np.arange(len(faces)), 3)


def open_edges(faces: Faces) -> tuple[Ends, OfEdges]:
    """Directed edges along which no face runs the other way, and their faces."""
    ends, face = directed_edges(faces)
    forth, back = edge_codes(ends)
    if np.array_equal(forth, back):  # much faster than to look for each, and most meshes are closed
        return ends[:0], face[:0]
    size = int(faces.max(initial=0)) + 1
    alone = ~np.isin(ends @ [size, 1], back)
    return ends[alone], face[alone]


def edge_codes(ends: Ends) -> tuple[OfEdges, OfEdges]:
    """One number per edge, as it runs and the other way round, each sorted."""
    size = int(ends.max(initial=0)) + 1
    return np.sort(ends @ [size, 1]), np.sort(ends @ [1, size])


def renumbered(
    numbers: Int64[np.ndarray, " *shape"], size: int
) -> tuple[Int64[np.ndarray, " used"], Int64[np.ndarray, " *shape"]]:
    """The numbers below ``size`` that occur, ascending, and each number's place among them."""
    occurs = np.zeros(size, bool)
    occurs[numbers] = True
    return np.flatnonzero(occurs), (occurs.cumsum() - 1)[numbers]


def _by_place(mesh: Mesh) -> Faces:
    order = np.lexsort(mesh.vertices.T[::-1])
    ordered = mesh.vertices[order]
    place = np.zeros(len(order), np.int64)
    place[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1).cumsum()
    return place[mesh.faces]
