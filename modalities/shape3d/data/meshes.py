"""Import of any folder of meshes: the same shards as rendered objects have."""

import re
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fewstep.modalities.objects.scene import Camera
from fewstep.modalities.objects.shapes import LONGEST_EDGE
from fewstep.modalities.shape3d.data.bodies import read_triangles
from fewstep.modalities.shape3d.data.shards import StoredObject
from fewstep.modalities.shape3d.data.triangles import TriangleSurface
from fewstep.modalities.shape3d.data.voxels import voxelised
from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.surface.rendering import rendered, seen

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
ELEVATIONS = (0, 40)  # degrees, of the views
FINER = 4  # what views are drawn with before they are cut to the object

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
    read = read_triangles(path)
    vertices, faces = read.vertices, read.faces
    if len(faces) == 0 or not np.isfinite(vertices[faces]).all():
        raise ValueError(f"{path} holds no triangle with finite corners; export it again as a triangle mesh")
    if up == "y":
        vertices = vertices[:, [0, 2, 1]] * (1, -1, 1)
    used = vertices[faces].reshape(-1, 3)
    low, high = used.min(0), used.max(0)
    if not (high - low).max() > 0:
        raise ValueError(f"{path} is a single point; remove it")
    vertices = (vertices - (low + high) / 2) * (LONGEST_EDGE / (high - low).max())
    return TriangleSurface(vertices=vertices.astype(np.float32), faces=faces, colours=read.colours)


def imported(
    path: Path, *, resolution: int = 16, up: Up = "y", views: int = 4, size: int = 64, seed: int = 0
) -> StoredObject:
    """A mesh as an object; its caption is in NAME.txt beside it, or the words of its name.

    Args:
        views: pictures of it from all around.
        size: their edge in pixels.
        seed: of the cameras, with the file's name.
    """
    surface = read_surface(path, up=up)
    sidecar = path.with_suffix(".txt")
    caption = " ".join(sidecar.read_text(encoding="utf-8").split()) if sidecar.is_file() else ""
    words = " ".join(re.findall(r"[A-Za-z]+", path.stem)).lower() or path.stem
    return StoredObject(
        voxels=voxelised(surface, resolution=resolution),
        views=pictures(surface, views, size=size, random=Random(f"{seed}/{path.name}")),
        record={"name": path.stem, "captions": [caption or words], "source": path.name},
    )


def pictures(
    surface: TriangleSurface, count: int, *, size: int, random: Random
) -> UInt8[np.ndarray, " view size size 4"]:
    """Views as `StoredObject` has them, each filled by the object as those of rendered scenes are."""
    corners = surface.vertices[surface.faces].reshape(-1, 3)
    mesh = Mesh(
        vertices=corners,
        faces=np.arange(len(corners)).reshape(-1, 3),
        colours=surface.colours.reshape(-1, 3).astype(np.float32) / 255,
    )
    views = np.zeros((count, size, size, 4), np.uint8)
    for view in views:
        camera = Camera(azimuth=random.uniform(-180, 180), elevation=random.uniform(*ELEVATIONS))
        picture = rendered(mesh, camera, size=FINER * size)
        mask = seen(mesh, camera, size=FINER * size).mask
        layers = np.concatenate([picture, 255 * mask[..., None].astype(np.uint8)], axis=-1)
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        half = (max(np.ptp(rows), np.ptp(columns)) + 1) / camera.fill / 2
        middle = (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2
        box = (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half)
        # what lies beyond the picture is paper, as its corner is
        margin = FINER * size // 2
        wide = np.broadcast_to(layers[0, 0] * [1, 1, 1, 0], (*np.add(mask.shape, 2 * margin), 4)).copy()
        wide[margin:-margin, margin:-margin] = layers
        place = tuple(edge + margin for edge in box)
        for channels in (slice(0, 3), slice(3, 4)):  # together, transparent pixels would turn black
            layer = Image.fromarray(wide[..., channels].astype(np.uint8).squeeze())
            cut = layer.resize((size, size), Image.Resampling.BOX, box=place)
            view[..., channels] = np.array(cut).reshape(size, size, -1)
    return views
