"""Fewer faces, by collapsing edges where it changes the surface least (Garland and Heckbert, 1997)."""

import numpy as np

from fewstep.modalities.shape3d.mesh_file import INSTALL, Mesh

FEWEST = 4


def simplified(mesh: Mesh, *, faces: int) -> Mesh:
    """The mesh with about ``faces`` faces, as it is where it has fewer; colours of the nearest vertex.

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
    try:
        import fast_simplification
    except ImportError as error:
        raise ImportError(f"a face budget needs fast-simplification: {INSTALL}") from error
    from scipy.spatial import KDTree

    made = fast_simplification.simplify(mesh.vertices, mesh.faces.astype(np.int32), target_count=faces, agg=3)
    vertices, kept = made[0], made[1]
    colours = None
    if mesh.colours is not None:
        colours = mesh.colours[KDTree(mesh.vertices).query(vertices)[1]]
    return Mesh(np.asarray(vertices, np.float32), np.asarray(kept, np.int64), colours)
