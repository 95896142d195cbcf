"""The triangles of a mesh file, all its bodies in their places, and the colours at the triangles' corners."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from fewstep.modalities.shape3d.mesh_file import linear_light, srgb

GREY = (178, 178, 178)  # of meshes without colours
IN_LINEAR_LIGHT = (".glb", ".gltf")  # whose numbers for colours are, unlike their pictures


@dataclass(frozen=True, eq=False)
class Triangles:
    """As a file has them: its own axes and units; colours are sRGB."""

    vertices: Float64[np.ndarray, " vertex 3"]
    faces: Int64[np.ndarray, " face 3"]
    colours: UInt8[np.ndarray, " face 3 3"]


def read_triangles(path: Path) -> Triangles:
    """Those of all bodies.

    Raises:
        ValueError: the file cannot be read.
        ImportError: naming what to install.
    """
    vertices, faces, colours = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], [np.zeros((0, 3, 3))]
    for body, place in _bodies(path):
        own = np.asarray(body.faces, np.int64)
        if np.linalg.det(place[:3, :3]) < 0:  # a mirror image turns faces inside out
            own = own[:, ::-1]
        faces.append(own + sum(map(len, vertices)))
        vertices.append(np.asarray(body.vertices, np.float64) @ place[:3, :3].T + place[:3, 3])
        colours.append(_corner_colours(body, own, linear=path.suffix.lower() in IN_LINEAR_LIGHT))
    bytes_ = np.round(255 * np.clip(np.concatenate(colours), 0, 1)).astype(np.uint8)
    return Triangles(np.concatenate(vertices), np.concatenate(faces), bytes_)


def _bodies(path: Path) -> Iterator[tuple[Any, Float64[np.ndarray, " 4 4"]]]:
    """Each mesh of the file, as often as it is placed, and its place."""
    try:
        import trimesh
    except ImportError as error:
        raise ImportError("reading meshes needs trimesh: pip install 'fewstep[three-d]'") from error
    try:
        scene: Any = trimesh.load(path, force="scene", process=False)
    # trimesh's readers raise whatever their formats' parsers do
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a mesh ({error}); export it again") from error
    for node in scene.graph.nodes_geometry:
        place, name = scene.graph[node]
        if isinstance(scene.geometry[name], trimesh.Trimesh):
            yield scene.geometry[name], np.asarray(place, np.float64)


def _corner_colours(
    body: Any, faces: Int64[np.ndarray, " face 3"], *, linear: bool
) -> Float64[np.ndarray, " face 3 3"]:
    """From 0 to 1, sRGB."""
    visual = body.visual
    if visual.kind == "texture":
        return srgb(_of_material(visual, len(body.vertices)))[faces]
    if visual.kind == "face":
        found = np.repeat(np.asarray(visual.face_colors)[:, None, :3], 3, axis=1)
    elif visual.kind == "vertex":
        found = np.asarray(visual.vertex_colors)[faces][..., :3]
    else:
        return np.broadcast_to(np.array(GREY) / 255, (*faces.shape, 3))
    return srgb(found / 255) if linear else found / 255


def _of_material(visual: Any, count: int) -> Float64[np.ndarray, " vertex 3"]:
    """Linear light of the vertices: that of the picture at their places, of the material, of themselves."""
    from trimesh.visual.color import uv_to_color
    from trimesh.visual.material import PBRMaterial, SimpleMaterial

    material = visual.material
    light = np.ones((count, 3))
    if isinstance(material, PBRMaterial):
        picture = material.baseColorTexture
        if material.baseColorFactor is not None:
            light *= np.asarray(material.baseColorFactor)[:3] / 255
    else:
        picture, diffuse = material.image, np.asarray(material.diffuse)[:3]
        if picture is None:
            unknown = np.array_equal(diffuse, SimpleMaterial().diffuse[:3])
            light *= linear_light(np.array(GREY if unknown else diffuse) / 255)
    if picture is not None and visual.uv is not None:
        light *= linear_light(uv_to_color(visual.uv, picture)[:, :3] / 255)
    own = visual.vertex_attributes.get("color")
    if own is not None and len(own) == count:
        whole = np.iinfo(own.dtype).max if np.issubdtype(own.dtype, np.integer) else 1
        light *= np.asarray(own)[:, :3] / whole
    return light
