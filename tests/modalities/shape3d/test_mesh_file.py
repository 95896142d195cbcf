"""Mesh files: the bytes of a GLB, colours in linear light, formats read back by another library."""

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.modalities.shape3d.mesh_file import WRITERS, Mesh, Texture, linear_light, write_mesh

trimesh = pytest.importorskip("trimesh", reason="needs trimesh: pip install 'fewstep[three-d]'")
pytest.importorskip("pygltflib", reason="needs pygltflib: pip install 'fewstep[three-d]'")

VALIDATOR = os.environ.get("GLTF_VALIDATOR", "")  # a folder in which npm installed gltf-validator


def tetrahedron(**surface: Any) -> Mesh:
    vertices = np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.25, 0], [0, 0, 0.125]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    return Mesh(vertices, faces, **surface)


COLOURED = tetrahedron(colours=np.array([[0, 0.5, 1], [1, 1, 1], [0.02, 0, 0], [0.2, 0.4, 0.8]], np.float32))
TEXTURED = tetrahedron(
    texture=Texture(
        np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32),
        np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3),
    )
)


def chunks(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON and the binary chunk of a GLB, its framing checked on the way."""
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<III", data)
    assert (magic, version, length) == (0x46546C67, 2, len(data))
    size, kind = struct.unpack_from("<II", data, 12)
    assert (size % 4, kind) == (0, 0x4E4F534A)
    rest, binary = struct.unpack_from("<II", data, 20 + size)
    assert (rest % 4, binary) == (0, 0x004E4942)
    assert 28 + size + rest == len(data)
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def array(gltf: dict[str, Any], binary: bytes, accessor: int) -> np.ndarray:
    entry = gltf["accessors"][accessor]
    view = gltf["bufferViews"][entry["bufferView"]]
    kind = {5126: np.float32, 5123: np.uint16, 5125: np.uint32}[entry["componentType"]]
    width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[entry["type"]]
    assert view["byteOffset"] % 4 == 0
    found = np.frombuffer(binary, kind, entry["count"] * width, view["byteOffset"]).reshape(-1, width)
    return found[:, 0] if width == 1 else found


def test_a_glb_holds_the_mesh_y_up_in_linear_light(tmp_path: Path) -> None:
    write_mesh(tmp_path / "a.glb", COLOURED)
    gltf, binary = chunks(tmp_path / "a.glb")
    primitive = gltf["meshes"][0]["primitives"][0]
    positions = array(gltf, binary, primitive["attributes"]["POSITION"])
    assert positions[3].tolist() == [0, 0.125, 0]  # what was up is up
    assert positions[2].tolist() == [0, 0, -0.25]
    accessor = gltf["accessors"][primitive["attributes"]["POSITION"]]
    assert accessor["min"] == positions.min(0).tolist()
    assert accessor["max"] == positions.max(0).tolist()
    indices = array(gltf, binary, primitive["indices"])
    assert indices.tolist() == COLOURED.faces.flatten().tolist()
    colours = array(gltf, binary, primitive["attributes"]["COLOR_0"]) / 65535
    np.testing.assert_allclose(colours[:, 3], 1)
    np.testing.assert_allclose(colours[0, :3], [0, 0.21404, 1], atol=1e-4)
    assert colours[2, 0] == pytest.approx(0.02 / 12.92, abs=1e-5)  # 8 bits would have made it 0
    normals = array(gltf, binary, primitive["attributes"]["NORMAL"])
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)


def test_volumes_keep_their_sign_when_the_axes_turn(tmp_path: Path) -> None:
    for ending in WRITERS:
        write_mesh(tmp_path / f"a{ending}", COLOURED)
        read = trimesh.load(tmp_path / f"a{ending}", force="mesh")
        assert read.volume == pytest.approx(0.5 * 0.25 * 0.125 / 6)
        assert len(read.faces) == 4


def test_a_texture_is_a_picture_in_the_file(tmp_path: Path) -> None:
    assert TEXTURED.texture is not None
    write_mesh(tmp_path / "a.glb", TEXTURED)
    read = trimesh.load(tmp_path / "a.glb", force="mesh")
    picture = np.asarray(read.visual.material.baseColorTexture.convert("RGB"))
    assert np.array_equal(picture, TEXTURED.texture.picture)
    # trimesh counts v from below
    np.testing.assert_allclose(read.visual.uv * [1, -1] + [0, 1], TEXTURED.texture.uvs, atol=1e-6)


def test_other_formats_keep_z_up_and_colours(tmp_path: Path) -> None:
    for ending in (".ply", ".obj"):
        write_mesh(tmp_path / f"a{ending}", COLOURED)
        read = trimesh.load(tmp_path / f"a{ending}", force="mesh", process=False)
        np.testing.assert_allclose(read.vertices, COLOURED.vertices, atol=1e-6)
        assert read.visual.vertex_colors[0, :3].tolist() == [0, 128, 255]


def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"chair\.fbx must end in one of \.glb, \.ply, \.obj, \.stl"):
        write_mesh(tmp_path / "chair.fbx", COLOURED)
    with pytest.raises(ValueError, match=r"hold no texture here; write a \.glb"):
        write_mesh(tmp_path / "chair.obj", TEXTURED)
    with pytest.raises(ValueError, match="no faces"):
        write_mesh(tmp_path / "chair.glb", Mesh(COLOURED.vertices, np.zeros((0, 3), np.int64)))
    with pytest.raises(ValueError, match="faces name vertices 0 to 3 of 2"):
        Mesh(COLOURED.vertices[:2], COLOURED.faces)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_spares_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, mesh: Mesh) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    write_mesh(tmp_path / "a.glb", COLOURED)
    before = (tmp_path / "a.glb").read_bytes()
    monkeypatch.setitem(WRITERS, ".glb", fail)
    with pytest.raises(OSError, match="no space left"):
        write_mesh(tmp_path / "a.glb", TEXTURED)
    assert (tmp_path / "a.glb").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.glb"]


def test_linear_light_is_that_of_the_standard() -> None:
    np.testing.assert_allclose(
        linear_light(np.array([0.0, 0.04045, 0.5, 1.0])), [0, 0.0031308, 0.21404, 1], atol=1e-5
    )


def test_a_normal_is_the_mean_of_the_faces_around_by_area() -> None:
    normal = COLOURED.normals[0]
    faces = np.array([-0.5 * 0.25, -0.5 * 0.125, -0.25 * 0.125])  # facing down, to the front, to the left
    np.testing.assert_allclose(normal[::-1], faces / np.linalg.norm(faces), atol=1e-6)


@pytest.mark.skipif(
    not VALIDATOR or shutil.which("node") is None,
    reason="needs node and GLTF_VALIDATOR, a folder where `npm install gltf-validator` was run; CI has both",
)
@pytest.mark.parametrize("mesh", [COLOURED, TEXTURED, tetrahedron()], ids=["coloured", "textured", "plain"])
def test_the_khronos_validator_finds_nothing(mesh: Mesh, tmp_path: Path) -> None:
    write_mesh(tmp_path / "a.glb", mesh)
    script = (
        "const v = require('gltf-validator'); const fs = require('fs');"
        "v.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])))"
        ".then((report) => console.log(JSON.stringify(report.issues)))"
    )
    command = ["node", "-e", script, str(tmp_path / "a.glb")]
    ended = subprocess.run(command, cwd=VALIDATOR, capture_output=True, text=True, check=True)
    issues = json.loads(ended.stdout)
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]
