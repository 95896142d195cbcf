"""The page that shows GLB files: what it serves, and what a real browser makes of it."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from fewstep.apps.mesh_viewer import create_viewer
from fewstep.modalities.shape3d.mesh_file import Mesh, Texture, write_mesh
from tests.apps.hands import Hand, Keyboard, Mouse

trimesh = pytest.importorskip("trimesh", reason="needs trimesh: pip install 'fewstep[three-d]'")

BASE_URL = "http://127.0.0.1"


COLOUR = (26, 128, 191)  # sRGB


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A red ball, a ring, a colour in three ways, a picture that lies elsewhere, and what is no mesh."""
    root = tmp_path_factory.mktemp("meshes")
    ball, ring = trimesh.creation.icosphere(subdivisions=2, radius=0.5), trimesh.creation.torus(0.4, 0.1)
    ball.visual.vertex_colors = np.tile(np.array([[200, 20, 20, 255]], np.uint8), (len(ball.vertices), 1))
    ball.export(root / "ball.glb")
    ring.export(root / "ring.glb")
    vertices, faces = ball.vertices.astype(np.float32), ball.faces.astype(np.int64)
    colours = np.tile(np.array(COLOUR, np.float32) / 255, (len(vertices), 1))
    write_mesh(root / "vertices.glb", Mesh(vertices, faces, colours=colours))
    picture = np.full((8, 8, 3), COLOUR, np.uint8)
    texture = Texture(np.full((len(vertices), 2), 0.5, np.float32), picture)
    write_mesh(root / "picture.glb", Mesh(vertices, faces, texture=texture))
    encoded = np.where(colours <= 0.0031308, 12.92 * colours, 1.055 * colours ** (1 / 2.4) - 0.055)
    write_mesh(root / "undecoded.glb", Mesh(vertices, faces, colours=encoded.astype(np.float32)))
    write_with_picture_elsewhere(root / "outside.glb", (root / "picture.glb").read_bytes())
    (root / "broken.glb").write_bytes(b"not a mesh, however one looks at it")
    return [root / f"{name}.glb" for name in NAMES]


NAMES = ("ball", "ring", "vertices", "picture", "undecoded", "outside", "broken")


def write_with_picture_elsewhere(path: Path, glb: bytes) -> None:
    length = struct.unpack("<I", glb[12:16])[0]
    gltf = json.loads(glb[20 : 20 + length])
    gltf["images"] = [{"uri": "https://elsewhere.example/picture.png"}]
    text = json.dumps(gltf).encode()
    text += b" " * (-len(text) % 4)
    rest = glb[20 + length :]
    header = struct.pack("<4sII", b"glTF", 2, 20 + len(text) + len(rest))
    path.write_bytes(header + struct.pack("<I4s", len(text), b"JSON") + text + rest)


def test_the_files_are_listed_and_served_as_they_are(files: list[Path]):
    client = TestClient(create_viewer(files), base_url=BASE_URL)
    listed = client.get("/v1/files").json()
    assert [one["name"] for one in listed] == [f"{name}.glb" for name in NAMES]
    for one, file in zip(listed, files, strict=True):
        answer = client.get(one["url"])
        assert answer.headers["content-type"] == "model/gltf-binary"
        assert answer.content == file.read_bytes()


@pytest.mark.parametrize("path", ["/v1/files/7.glb", "/v1/files/-1.glb", "/static/../mesh_viewer.py"])
def test_nothing_else_is_served(files: list[Path], path: str):
    assert TestClient(create_viewer(files), base_url=BASE_URL).get(path).status_code == 404


def test_the_page_may_load_nothing_from_elsewhere(files: list[Path]):
    client = TestClient(create_viewer(files), base_url=BASE_URL)
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    for path in ("", "static/js/main.js", "static/viewers/js/mesh_stage.js", "static/viewers/viewer.css"):
        answer = client.get(f"/{path}")
        assert answer.status_code == 200
        assert "http://" not in answer.text
        assert "https://" not in answer.text
    assert client.get("/static/viewers/vendor/three.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400


def test_what_cannot_be_viewed_is_named(files: list[Path], tmp_path: Path):
    with pytest.raises(ValueError, match="give at least one"):
        create_viewer([])
    with pytest.raises(ValueError, match=r"chair\.obj cannot be viewed here"):
        create_viewer([tmp_path / "chair.obj"])
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.glb"):
        create_viewer([tmp_path / "gone.glb"])


@pytest.fixture(scope="module")
def tab(files: list[Path], open_page: Callable[[Any], Any]) -> Any:
    return open_page(create_viewer(files))


# From where the eye stands at first, azimuth 0.6 and elevation 0.35 in radians, as a colour.
LOOKED_ALONG = 127.5 * (1 + np.array([np.sin(0.6) * np.cos(0.35), np.sin(0.35), np.cos(0.6) * np.cos(0.35)]))


def choose(tab: Any, name: str) -> None:
    tab.click(f"text={name}")
    tab.wait_for_function(f"() => document.body.dataset.shown === '{name}'")


def middle(picture: np.ndarray) -> np.ndarray:
    return picture[picture.shape[0] // 2, picture.shape[1] // 2]


@pytest.mark.browser
def test_a_browser_draws_what_is_in_the_file(tab: Any, seen: Callable[[str], np.ndarray]):
    choose(tab, "ball.glb")
    assert tab.text_content("#faces") == "320"
    assert tab.text_content("#extents") == " \u00d7 ".join(["1.00"] * 3)
    red, green, blue = middle(seen("#canvas"))
    assert red > 150
    assert red > 2 * max(green, blue)

    tab.click("[data-shading=clay]")
    clay = seen("#canvas")
    assert np.ptp(middle(clay)) < 12
    tab.click("#wireframe")
    assert np.abs(seen("#canvas") - clay).max() > 60
    tab.click("#wireframe")
    assert np.array_equal(seen("#canvas"), clay)

    tab.click("[data-shading=normals]")
    assert middle(seen("#canvas")) == pytest.approx(LOOKED_ALONG, abs=25)
    tab.click("[data-shading=colour]")
    choose(tab, "ring.glb")
    assert middle(seen("#canvas")).max() < 60  # one looks through the hole at the dark ground
    assert tab.complaints == []


@pytest.mark.browser
def test_colours_are_linear_in_vertices_and_srgb_in_pictures(tab: Any, seen: Callable[[str], np.ndarray]):
    colours = {}
    for name in ("vertices", "picture", "undecoded"):
        choose(tab, f"{name}.glb")
        colours[name] = middle(seen("#canvas"))
    assert colours["vertices"] == pytest.approx(np.array(COLOUR), abs=30)  # lit about as bright as it is
    assert colours["picture"] == pytest.approx(colours["vertices"], abs=2)
    assert (colours["undecoded"] - colours["picture"]).max() > 30


@pytest.mark.browser
def test_the_eye_goes_around_by_keys_and_comes_home(tab: Any, go_around: Callable[..., None]):
    choose(tab, "ring.glb")
    go_around("#canvas", lambda picture: (picture.max(-1) > 100).sum())


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("hand_of", [Keyboard, Mouse])
def test_every_control_is_used(
    tab: Any, hand_of: type[Hand], files: list[Path], use_tools: Callable[[Hand, str], None]
):
    """With the keyboard alone, and with the mouse."""
    choose(tab, "ball.glb")
    hand = hand_of(tab)
    hand.press("#files li:nth-child(2) button", "Space")
    tab.wait_for_function("() => document.body.dataset.shown === 'ring.glb'")
    hand.press_all("#shading")
    hand.press_on_and_off("#wireframe")
    use_tools(hand, "#canvas")
    with tab.expect_download() as waiting:
        hand.press("#download")
    assert Path(waiting.value.path()).read_bytes() == files[1].read_bytes()
    assert waiting.value.suggested_filename == "ring.glb"
    hand.press("#shading button")
    assert hand.unused() == set()


@pytest.mark.browser
def test_what_cannot_be_drawn_is_said_and_nothing_is_asked_of_elsewhere(
    tab: Any, seen: Callable[[str], np.ndarray]
):
    choose(tab, "ball.glb")
    assert middle(seen("#canvas")).max() > 150
    for name, text in (("broken", "this is not a GLB file"), ("outside", "lies outside the file")):
        tab.click(f"text={name}.glb")
        tab.wait_for_function(f"() => document.querySelector('#message').textContent.startsWith('{name}')")
        assert text in tab.text_content("#message")
        assert tab.text_content("#faces") == "\N{EN DASH}"
        assert middle(seen("#canvas")).max() < 60  # and not the mesh before it
    assert tab.foreign == []
    choose(tab, "ball.glb")
    assert not tab.is_visible("#message")


@pytest.mark.browser
def test_no_serious_barrier_is_found_by_axe(barriers: list[list[str]]):
    assert barriers == []


@pytest.mark.browser
def test_the_page_is_as_light_as_the_browser_wishes(follow_the_scheme: Callable[[], None]):
    follow_the_scheme()


@pytest.mark.browser
def test_nothing_sticks_out_on_a_phone(tab: Any):
    before = tab.viewport_size
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.wait_for_function("() => document.documentElement.scrollWidth === 390")
    tab.set_viewport_size(before)
