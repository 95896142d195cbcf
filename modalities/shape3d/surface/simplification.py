"""Fewer faces, by collapsing edges where it changes the surface least (Garland and Heckbert, 1997)."""

import numpy as np

from fewstep.modalities.shape3d.mesh_file import INSTALL, Mesh
from fewstep.modalities.shape3d.surface.pinches import without_pinches

FEWEST = 4
# how fast larger errors are allowed; the next one only where the last one did not get there
AGGRESSIVENESS = (3, 5, 7, 9)
ATTEMPTS = 4  # to make room for the faces that undo pinches


def simplified(mesh: Mesh, *, faces: int) -> Mesh:
    """The mesh with at most ``faces`` faces, as it is where it has fewer; colours of the nearest vertex.

    A closed mesh stays closed. A few dozen faces more than asked for are left where the shape has no less.

    Raises:
        ValueError: for fewer than 4 faces, or a mesh with a texture (its seams would tear).
        ImportError: naming what to install.
    """
    if faces < FEWEST:
        raise ValueError(f"faces={faces} is too few for a closed surface; allow at least {FEWEST}")
    if mesh.texture is not None:
        raise ValueError("simplify a mesh before it gets a texture, not afterwards")
    if len(mesh.faces) <= faces:
        return mesh
    wanted, found = faces, mesh
    for _ in range(ATTEMPTS):
        found = without_pinches(_collapsed(mesh, wanted))
        if len(found.faces) <= faces:
            break
        wanted = max(FEWEST, wanted - (len(found.faces) - faces))
    return found


def _collapsed(mesh: Mesh, faces: int) -> Mesh:
    """Until so many are left; edges may then have more than two faces."""
    try:
        import fast_simplification
    except ImportError as error:
        raise ImportError(f"a face budget needs fast-simplification: {INSTALL}") from error
    from scipy.spatial import KDTree

    vertices, kept = mesh.vertices, mesh.faces
    for agg in AGGRESSIVENESS:
        made = fast_simplification.simplify(vertices, kept.astype(np.int32), target_count=faces, agg=agg)
        vertices, kept = made[0], made[1]
        if len(kept) <= faces:
            break
    colours = None
    if mesh.colours is not None:
        colours = mesh.colours[KDTree(mesh.vertices).query(vertices)[1]]
    return Mesh(np.asarray(vertices, np.float32), np.asarray(kept, np.int64), colours)
