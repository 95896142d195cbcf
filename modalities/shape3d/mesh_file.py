"""Meshes with colours or a texture, and the files they are written to: GLB, PLY, OBJ, STL."""

import io
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8
from PIL import Image

if TYPE_CHECKING:
    import trimesh

Points = Float32[np.ndarray, " vertex 3"]
INSTALL = "pip install 'fewstep[three-d]'"

# of glTF 2.0
FLOAT, UNSIGNED_SHORT, UNSIGNED_INT = 5126, 5123, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, REPEAT = 9729, 9987, 10497
ALIGNMENT = 4


@dataclass(frozen=True, eq=False)
class Texture:
    """A picture, sRGB, and where on it each vertex lies: u to the right and v down, from 0 to 1."""

    uvs: Float32[np.ndarray, " vertex 2"]
    picture: UInt8[np.ndarray, " height width 3"]


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles, counter-clockwise seen from outside, z up; generated ones lie in [-0.5, 0.5]^3.

    Args:
        vertices: positions.
        faces: numbers of the corners.
        colours: of the vertices, sRGB from 0 to 1.
        texture: in place of colours.
    """

    vertices: Points
    faces: Int64[np.ndarray, " face 3"]
    colours: Points | None = None
    texture: Texture | None = None

    def __post_init__(self) -> None:
        if len(self.faces) and not 0 <= int(self.faces.min()) <= int(self.faces.max()) < len(self.vertices):
            raise ValueError(
                f"faces name vertices {int(self.faces.min())} to {int(self.faces.max())} of "
                f"{len(self.vertices)}; count them from 0"
            )

    @property
    def normals(self) -> Points:
        """Of the vertices: the mean of the faces around, by area; unit length, z where there is none."""
        a, b, c = (self.vertices[self.faces[:, corner]].astype(np.float64) for corner in range(3))
        of_faces = np.cross(b - a, c - a)
        corners, of_corners = self.faces.ravel(), np.repeat(of_faces, 3, axis=0)
        count = len(self.vertices)
        total = np.stack([np.bincount(corners, of_corners[:, axis], count) for axis in range(3)], axis=1)
        length = np.linalg.norm(total, axis=1, keepdims=True)
        return np.where(length > 0, total / np.maximum(length, 1e-300), (0.0, 0.0, 1.0)).astype(np.float32)


def write_mesh(path: Path, mesh: Mesh) -> None:
    """Write a mesh in the format that the file's ending names, at once when it is complete.

    GLB is y up and in linear light, as glTF has it; the others keep z up, and colours except STL.

    Raises:
        ValueError: for another ending, a mesh without faces, or a texture where the format cannot hold one.
        ImportError: naming what to install.
    """
    write = WRITERS.get(path.suffix.lower())
    if write is None:
        raise ValueError(f"{path.name} must end in one of {', '.join(WRITERS)}")
    if not len(mesh.faces):
        raise ValueError(f"{path.name}: the mesh has no faces; there is nothing to write")
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix.lower()}")
    try:
        write(part, mesh)
        part.replace(path)
    finally:
        if part.exists():
            os.unlink(part)


def linear_light(srgb: Float[np.ndarray, " *shape"]) -> Float[np.ndarray, " *shape"]:
    """Decoded sRGB (IEC 61966-2-1), from 0 to 1."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def srgb(linear: Float[np.ndarray, " *shape"]) -> Float[np.ndarray, " *shape"]:
    """The counterpart of `linear_light`."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 0.0) ** (1 / 2.4) - 0.055)


def y_up(points: Points) -> Points:
    """The same seen from a frame whose y axis points up: (x, z, -y)."""
    return np.stack([points[:, 0], points[:, 2], -points[:, 1]], axis=1)


class _Glb:
    """Collects what a GLB file holds, each array in a piece of the buffer of its own."""

    def __init__(self) -> None:
        try:
            import pygltflib
        except ImportError as error:
            raise ImportError(f"GLB files need pygltflib: {INSTALL}") from error
        self.lib = pygltflib
        self.gltf: pygltflib.GLTF2 = pygltflib.GLTF2(
            asset=pygltflib.Asset(version="2.0", generator="fewstep"), scene=0
        )
        self.blob = bytearray()

    def add_bytes(self, data: bytes, target: int | None = None) -> int:
        """The number of the buffer view."""
        self.blob += b"\0" * (-len(self.blob) % ALIGNMENT)
        self.gltf.bufferViews.append(
            self.lib.BufferView(buffer=0, byteOffset=len(self.blob), byteLength=len(data), target=target)
        )
        self.blob += data
        return len(self.gltf.bufferViews) - 1

    def add_array(self, array: np.ndarray, component: int, target: int, **settings: Any) -> int:
        """The number of the accessor."""
        kind = "SCALAR" if array.ndim == 1 else f"VEC{array.shape[1]}"
        view = self.add_bytes(np.ascontiguousarray(array).tobytes(), target)
        self.gltf.accessors.append(
            self.lib.Accessor(
                bufferView=view,
                byteOffset=0,
                componentType=component,
                count=len(array),
                type=kind,
                **settings,
            )
        )
        return len(self.gltf.accessors) - 1


def _write_glb(path: Path, mesh: Mesh) -> None:
    glb = _Glb()
    lib, gltf = glb.lib, glb.gltf
    vertices = y_up(mesh.vertices).astype("<f4")
    attributes = {
        "POSITION": glb.add_array(
            vertices, FLOAT, ARRAY_BUFFER, min=vertices.min(0).tolist(), max=vertices.max(0).tolist()
        ),
        "NORMAL": glb.add_array(y_up(mesh.normals).astype("<f4"), FLOAT, ARRAY_BUFFER),
    }
    surface = lib.PbrMetallicRoughness(metallicFactor=0.0, roughnessFactor=1.0)
    if mesh.texture is not None:
        attributes["TEXCOORD_0"] = glb.add_array(mesh.texture.uvs.astype("<f4"), FLOAT, ARRAY_BUFFER)
        picture = io.BytesIO()
        Image.fromarray(mesh.texture.picture).save(picture, "PNG")
        gltf.images.append(lib.Image(bufferView=glb.add_bytes(picture.getvalue()), mimeType="image/png"))
        gltf.samplers.append(
            lib.Sampler(magFilter=LINEAR, minFilter=LINEAR_MIPMAP_LINEAR, wrapS=REPEAT, wrapT=REPEAT)
        )
        gltf.textures.append(lib.Texture(source=0, sampler=0))
        surface.baseColorTexture = lib.TextureInfo(index=0)
    elif mesh.colours is not None:
        # 16 bits, as 8 bits of linear light are too coarse in the dark; four values, to stay aligned
        light = np.ones((len(vertices), 4))
        light[:, :3] = linear_light(np.clip(mesh.colours, 0.0, 1.0))
        colours = np.round(light * 65535).astype("<u2")
        attributes["COLOR_0"] = glb.add_array(colours, UNSIGNED_SHORT, ARRAY_BUFFER, normalized=True)
    indices = mesh.faces.reshape(-1).astype("<u4")
    primitive = lib.Primitive(
        attributes=lib.Attributes(**attributes),
        indices=glb.add_array(indices, UNSIGNED_INT, ELEMENT_ARRAY_BUFFER),
        material=0,
    )
    gltf.materials.append(lib.Material(pbrMetallicRoughness=surface, doubleSided=False, alphaCutoff=None))
    gltf.meshes.append(lib.Mesh(primitives=[primitive]))
    gltf.nodes.append(lib.Node(mesh=0))
    gltf.scenes.append(lib.Scene(nodes=[0]))
    glb.blob += b"\0" * (-len(glb.blob) % ALIGNMENT)
    gltf.buffers.append(lib.Buffer(byteLength=len(glb.blob)))
    gltf.set_binary_blob(bytes(glb.blob))
    path.write_bytes(b"".join(gltf.save_to_bytes()))


def _write_plain(path: Path, mesh: Mesh) -> None:
    if mesh.texture is not None:
        raise ValueError(f"{path.suffix} files hold no texture here; write a .glb, or give vertex colours")
    as_trimesh(mesh).export(path)


def as_trimesh(mesh: Mesh) -> "trimesh.Trimesh":
    """The mesh as trimesh has it, for its many tools."""
    try:
        import trimesh
    except ImportError as error:
        raise ImportError(f"this needs trimesh: {INSTALL}") from error
    colours = None
    if mesh.colours is not None:
        colours = np.round(np.clip(mesh.colours, 0, 1) * 255).astype(np.uint8)
    return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=colours, process=False)


WRITERS: dict[str, Callable[[Path, Mesh], None]] = {
    ".glb": _write_glb,
    ".ply": _write_plain,
    ".obj": _write_plain,
    ".stl": _write_plain,
}
