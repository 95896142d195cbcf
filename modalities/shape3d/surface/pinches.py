"""Edges at which a closed surface touches itself, as collapsing edges leaves them."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float64, Int64

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.surface.cleaning import with_faces
from fewstep.modalities.shape3d.surface.connectivity import connectivity, directed_edges

APART = 0.01  # of the edge's length, by which the sheets' middles are moved
FLAT = 0.1  # length of the sum of two normals below which a sheet is folded onto itself

Edge = tuple[int, int]


def without_pinches(mesh: Mesh) -> Mesh:
    """The mesh with two faces at every edge: an edge of more gets a middle for each pair of them.

    The middles move apart, each into the solid between its two faces, so that the sheets touch at the ends
    only. Every face at such an edge becomes two. Edges whose faces are not in pairs stay as they are.
    """
    mesh = _without_folds(mesh)
    pinched = pinched_edges(connectivity(mesh).faces)
    if not len(pinched):
        return mesh
    there = np.zeros(int(connectivity(mesh).faces.max()) + 1, np.int64)  # a vertex at each place
    there[connectivity(mesh).faces] = mesh.faces
    faces = there[connectivity(mesh).faces].tolist()
    vertices = list(mesh.vertices.astype(np.float64))
    colours = None if mesh.colours is None else list(mesh.colours)
    for low, high in there[pinched].tolist():
        for pair in _sheets(faces, vertices, (low, high)):
            middle = len(vertices)
            vertices.append(_middle(faces, vertices, (low, high), pair))
            if colours is not None:
                colours.append((colours[low] + colours[high]) / 2)
            for number in pair:
                first, second, third = _from(faces[number], low, high)
                faces[number] = [first, middle, third]
                faces.append([middle, second, third])
    return replace(
        mesh,
        vertices=np.array(vertices, np.float32),
        faces=np.array(faces, np.int64),
        colours=None if colours is None else np.array(colours, np.float32),
    )


def _without_folds(mesh: Mesh) -> Mesh:
    """Without pairs of faces that lie on each other's backs, between which there is nothing."""
    faces = connectivity(mesh).faces
    if not len(faces):
        return mesh
    _, place, count = np.unique(np.sort(faces, axis=1), axis=0, return_inverse=True, return_counts=True)
    place = place.reshape(-1)
    turns = np.take_along_axis(faces, (np.argmin(faces, axis=1)[:, None] + [0, 1, 2]) % 3, axis=1)
    side = np.where(turns[:, 1] < turns[:, 2], 1, -1)
    folded = (count == 2) & (np.bincount(place, side, len(count)) == 0)
    return with_faces(mesh, ~folded[place])


def pinched_edges(faces: Int64[np.ndarray, " face 3"]) -> Int64[np.ndarray, " edge 2"]:
    """Those of more than two faces, as many of which run along them either way."""
    ends, _ = directed_edges(faces)
    lines, line, count = np.unique(np.sort(ends, axis=1), axis=0, return_inverse=True, return_counts=True)
    balance = np.bincount(line.reshape(-1), np.where(ends[:, 0] < ends[:, 1], 1, -1), len(lines))
    return lines[(count > 2) & (balance == 0) & (lines[:, 0] != lines[:, 1])]


def _from(face: list[int], low: int, high: int) -> list[int]:
    """The face's corners, beginning with the edge's two, in the order in which the face has them."""
    turned = [face[step:] + face[:step] for step in range(3)]
    return next(corners for corners in turned if {corners[0], corners[1]} == {low, high})


def _sheets(faces: list[list[int]], vertices: list[np.ndarray], edge: Edge) -> list[tuple[int, int]]:
    """The faces at an edge in pairs, between which there is solid."""
    low, high = edge
    numbers = [number for number, face in enumerate(faces) if low in face and high in face]
    axis = vertices[high] - vertices[low]
    axis /= max(float(np.linalg.norm(axis)), 1e-300)
    side = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    angles = {}
    for number in numbers:
        arm = vertices[_from(faces[number], low, high)[2]] - vertices[low]
        angles[number] = np.arctan2(arm @ np.cross(axis, side), arm @ side)
    forth = [number for number in numbers if _from(faces[number], low, high)[0] == low]
    pairs = []
    # seen along the edge, solid reaches from a face that runs back to the next one that runs forth
    for back in sorted(set(numbers) - {*forth}, key=lambda number: angles[number]):
        following = min(forth, key=lambda number: (angles[number] - angles[back]) % (2 * np.pi))
        forth.remove(following)
        pairs.append((back, following))
    return pairs


def _middle(
    faces: list[list[int]], vertices: list[np.ndarray], edge: Edge, pair: tuple[int, int]
) -> Float64[np.ndarray, " 3"]:
    low, high = (vertices[end] for end in edge)
    middle = (low + high) / 2
    corners = [[vertices[corner] for corner in faces[number]] for number in pair]
    normals = [np.cross(b - a, c - a) for a, b, c in corners]
    inwards = -sum(normal / max(float(np.linalg.norm(normal)), 1e-300) for normal in normals)
    if np.linalg.norm(inwards) < FLAT:
        inwards = np.mean([np.sum(one, axis=0) - low - high for one in corners], axis=0) - middle
    length = max(float(np.linalg.norm(inwards)), 1e-300)
    return middle + APART * float(np.linalg.norm(high - low)) * inwards / length
