"""Import of any folder of meshes: the same shards as rendered objects have."""

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt8

from fewstep.modalities.objects.shapes import LONGEST_EDGE
from fewstep.modalities.shape3d.data.shards import StoredObject
from fewstep.modalities.shape3d.data.triangles import TriangleSurface
from fewstep.modalities.shape3d.data.voxels import voxelised

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
GREY = (178, 178, 178)  # of meshes without colours

Up = Literal["y", "z"]


def mesh_files(folder: Path | str) -> list[Path]:
    """All meshes in a folder and the folders in it, in the order of their paths."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MESH_SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no mesh; put {', '.join(MESH_SUFFIXES)} files there")
    return files


def read_surface(path: Path, *, up: Up = "y") -> TriangleSurface:
    """A mesh file, moved and scaled into the unit cube; of several bodies the union of their triangles.

    Args:
        up: the file's upward axis; glTF has y.

    Raises:
        ValueError: the file cannot be read or holds no triangle.
    """
    loaded = _loaded(path)
    vertices, faces = np.asarray(loaded.vertices, np.float64), np.asarray(loaded.faces, np.int64)
    if len(faces) == 0 or not np.isfinite(vertices[faces]).all():
        raise ValueError(f"{path} holds no triangle with finite corners; export it again as a triangle mesh")
    if up == "y":
        vertices = vertices[:, [0, 2, 1]] * (1, -1, 1)
    used = vertices[faces].reshape(-1, 3)
    low, high = used.min(0), used.max(0)
    if not (high - low).max() > 0:
        raise ValueError(f"{path} is a single point; remove it")
    vertices = (vertices - (low + high) / 2) * (LONGEST_EDGE / (high - low).max())
    return TriangleSurface(
        vertices=vertices.astype(np.float32), faces=faces, colours=_corner_colours(loaded, faces)
    )


def imported(path: Path, *, resolution: int = 16, up: Up = "y") -> StoredObject:
    """A mesh as an object without views; its caption is in NAME.txt beside it, or the words of its name."""
    sidecar = path.with_suffix(".txt")
    caption = " ".join(sidecar.read_text(encoding="utf-8").split()) if sidecar.is_file() else ""
    words = " ".join(re.findall(r"[A-Za-z]+", path.stem)).lower() or path.stem
    return StoredObject(
        voxels=voxelised(read_surface(path, up=up), resolution=resolution),
        views=np.zeros((0, 1, 1, 4), np.uint8),
        record={"name": path.stem, "captions": [caption or words], "source": path.name},
    )


def _loaded(path: Path) -> Any:
    try:
        import trimesh
    except ImportError as error:
        raise ImportError("reading meshes needs trimesh: pip install 'fewstep[shape3d]'") from error
    try:
        return trimesh.load(path, force="mesh", process=False)
    # trimesh's readers raise whatever their formats' parsers do
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a mesh ({error}); export it again") from error


def _corner_colours(loaded: Any, faces: Int64[np.ndarray, " face 3"]) -> UInt8[np.ndarray, " face 3 3"]:
    visual = loaded.visual
    if visual.kind == "texture":
        visual = visual.to_color()
    if visual.kind == "face":
        return np.repeat(np.asarray(visual.face_colors)[:, None, :3], 3, axis=1).astype(np.uint8)
    if visual.kind == "vertex":
        return np.asarray(visual.vertex_colors)[faces][..., :3].astype(np.uint8)
    return np.broadcast_to(np.array(GREY, np.uint8), (len(faces), 3, 3)).copy()
