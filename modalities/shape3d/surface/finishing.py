"""From an extracted mesh to one that is fit for a file: closed, without loose pieces, small, textured."""

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.surface.cavities import without_cavities
from fewstep.modalities.shape3d.surface.cleaning import SMALLEST_SHARE, cleaned
from fewstep.modalities.shape3d.surface.closing import filled
from fewstep.modalities.shape3d.surface.simplification import simplified
from fewstep.modalities.shape3d.surface.texture import textured

MOST_FACES_TO_UNWRAP = 20_000


def finished(
    mesh: Mesh, *, floaters: float = SMALLEST_SHARE, faces: int | None = None, texture: int | None = None
) -> Mesh:
    """The mesh without walls within it, loose pieces and holes, and with what else is asked for.

    Args:
        floaters: pieces below this share of the area are dropped.
        faces: most of them; None for all.
        texture: pixels along the edge of a texture, into which the colours of the vertices are baked; for
            this the mesh is simplified to at most 20,000 faces.

    Raises:
        ValueError: for numbers out of range.
        ImportError: naming what to install for a budget or a texture.
    """
    closed = filled(cleaned(without_cavities(mesh), smallest_share=floaters))
    few = closed if faces is None else simplified(closed, faces=faces)
    if texture is None:
        return few
    few = simplified(few, faces=min(len(few.faces), MOST_FACES_TO_UNWRAP))
    return textured(few, size=texture, source=closed)
