"""How the faces of a mesh hang together."""

from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from fewstep.modalities.shape3d.mesh_file import Mesh, Points

Faces = Int64[np.ndarray, " face 3"]
Ends = Int64[np.ndarray, " edge 2"]
OfFaces = Int64[np.ndarray, " face"]
OfEdges = Int64[np.ndarray, " edge"]
# odd, of many bits
MIXERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)


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
    if in_pairs(ends):  # much faster than to look for each, and most meshes are closed
        return ends[:0], face[:0]
    _, back = edge_codes(ends)
    size = int(faces.max(initial=0)) + 1
    alone = ~np.isin(ends @ [size, 1], back)
    return ends[alone], face[alone]


def in_pairs(ends: Ends) -> bool:
    """Whether every edge occurs twice, once in each direction."""
    size = int(ends.max(initial=0)) + 1
    low, high = ends.min(axis=1), ends.max(axis=1)
    codes = 2 * (low * size + high) + (ends[:, 0] > low)
    if 2 * size**2 <= 2**32:
        codes = codes.astype(np.uint32)  # sorted in half the time
    codes.sort()
    forth, back = codes[::2], codes[1::2]
    return len(forth) == len(back) and bool(((forth % 2 == 0) & (forth + 1 == back)).all())


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
    """The faces, by numbers of places instead of vertices."""
    codes = _mixed(mesh.vertices)
    order = np.argsort(codes)
    other = codes[order[1:]] != codes[order[:-1]]
    if not np.array_equal(other, _differs(mesh.vertices[order])):
        # two places share a code, or a vertex is no number: sorted by coordinates, five times slower
        order = np.lexsort(mesh.vertices.T[::-1])
        other = _differs(mesh.vertices[order])
    place = np.zeros(len(order), np.int64)
    place[order[1:]] = other.cumsum()
    return place[mesh.faces]


def _differs(ordered: Points) -> Bool[np.ndarray, " pair"]:
    """Whether a vertex lies elsewhere than the one before it."""
    return (ordered[1:] != ordered[:-1]).any(axis=1)


def _mixed(vertices: Points) -> UInt64[np.ndarray, " vertex"]:
    """A number per vertex, equal where coordinates are, and hardly ever elsewhere."""
    bits = (vertices.astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.uint64)  # -0 is 0
    return (bits * MIXERS).sum(axis=1, dtype=np.uint64)
