"""Faces turned to one side, and holes filled."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.surface.connectivity import (
    Ends,
    Faces,
    connectivity,
    directed_edges,
    open_edges,
)

MOST_EDGES = 64  # around a hole that is filled: longer ones may be openings


def oriented(mesh: Mesh) -> Mesh:
    """Neighbouring faces turned to the same side, and each closed piece outwards.

    A piece that is open keeps the side of most of its area. One that has only one side (Moebius' strip) is
    left as it is, and edges with three faces or more join none of them.
    """
    if not len(mesh.faces):
        return mesh
    faces = connectivity(mesh).faces
    turned = _turns(faces)
    piece, count = connectivity(mesh).components
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].astype(np.float64) for corner in range(3))
    normals = np.cross(b - a, c - a) * np.where(turned, -1, 1)[:, None]
    volume = np.bincount(piece, np.einsum("fi,fi->f", a, normals), count)
    untouched = np.where(turned, -1, 1) * np.linalg.norm(normals, axis=1)
    agreed = np.where(turned[:, None], faces[:, ::-1], faces)
    is_open = np.bincount(piece[open_edges(agreed)[1]], minlength=count) > 0
    inwards = np.where(is_open, np.bincount(piece, untouched, count) < 0, volume < 0)
    turned ^= inwards[piece]
    return replace(mesh, faces=np.where(turned[:, None], mesh.faces[:, ::-1], mesh.faces))


def filled(mesh: Mesh, *, most_edges: int = MOST_EDGES) -> Mesh:
    """Holes filled with triangles around their middle, whose colour is the mean of the rim's.

    The faces must be turned to one side. Rims that meet at a vertex stay open.

    Raises:
        ValueError: for fewer than 3 edges, or a mesh with a texture, which has none for the new faces.
    """
    if most_edges < 3:
        raise ValueError(f"most_edges={most_edges} is less than any hole has; allow at least 3")
    if mesh.texture is not None:
        raise ValueError("fill the holes of a mesh before it gets a texture, not afterwards")
    if not len(mesh.faces):
        return mesh
    faces = connectivity(mesh).faces
    there = np.zeros(int(faces.max()) + 1, np.int64)  # a vertex at each place
    there[faces] = mesh.faces
    rims = [there[rim] for rim in _rims(connectivity(mesh).open_edges[0]) if len(rim) <= most_edges]
    if not rims:
        return mesh
    middles = len(mesh.vertices) + np.arange(len(rims))
    caps = [
        np.stack([rim, np.roll(rim, -1), np.full(len(rim), middle)], axis=1)
        for rim, middle in zip(rims, middles, strict=True)
    ]

    def with_middles(of_vertices: np.ndarray) -> np.ndarray:
        return np.concatenate([of_vertices, *[of_vertices[rim].mean(0, keepdims=True) for rim in rims]])

    return Mesh(
        with_middles(mesh.vertices),
        np.concatenate([mesh.faces, *caps]),
        None if mesh.colours is None else with_middles(mesh.colours),
    )


def _turns(faces: Faces) -> np.ndarray:
    """Which faces to turn so that each agrees with the first one of its piece, ``[face]`` of booleans.

    Every face has two sides; sides of neighbours that agree are joined, and what hangs together is one side
    of a piece.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends, face = directed_edges(faces)
    low_first = ends[:, 0] < ends[:, 1]
    lines, line, count = np.unique(np.sort(ends, axis=1), axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(line.reshape(-1), kind="stable")
    first = (np.cumsum(count) - count)[(count == 2) & (lines[:, 0] != lines[:, 1])]
    one, other = order[first], order[first + 1]
    # two faces agree where they run along their edge in opposite directions
    step = np.where(low_first[one] != low_first[other], 0, 1)
    total = len(faces)
    sides = np.concatenate([face[one], face[one] + total])
    beyond = np.concatenate([face[other] + step * total, face[other] + (1 - step) * total])
    graph = coo_matrix((np.ones(len(sides), bool), (sides, beyond)), shape=(2 * total, 2 * total))
    group = connected_components(graph, directed=False)[1].reshape(2, total)
    # groups are numbered by their first member; a piece with two sides has one on either
    return group[0] > group[1]


def _rims(ends: Ends) -> Iterator[Int64[np.ndarray, " rim"]]:
    """Loops against the direction of open edges, which is that of the faces to come."""
    places, starts = np.unique(ends[:, 1], return_counts=True)
    forks = {*places[starts > 1].tolist()}
    following = {end: start for start, end in ends.tolist() if end not in forks}
    while following:
        rim = [next(iter(following))]
        while (beyond := following.pop(rim[-1], None)) is not None and beyond != rim[0]:
            rim.append(beyond)
        if beyond is not None and len(rim) > 2:
            yield np.array(rim, np.int64)
