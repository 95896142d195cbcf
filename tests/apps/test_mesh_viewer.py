"""The page that shows GLB files: what it serves, and what a real browser makes of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from fewstep.apps.mesh_viewer import create_viewer

trimesh = pytest.importorskip("trimesh", reason="needs trimesh: pip install 'fewstep[three-d]'")

BASE_URL = "http://127.0.0.1"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A red ball, a plain ring, and a file that is no mesh."""
    root = tmp_path_factory.mktemp("meshes")
    ball, ring = trimesh.creation.icosphere(subdivisions=2, radius=0.5), trimesh.creation.torus(0.4, 0.1)
    ball.visual.vertex_colors = np.tile(np.array([[200, 20, 20, 255]], np.uint8), (len(ball.vertices), 1))
    ball.export(root / "ball.glb")
    ring.export(root / "ring.glb")
    (root / "broken.glb").write_bytes(b"not a mesh, however one looks at it")
    return [root / f"{name}.glb" for name in ("ball", "ring", "broken")]


def test_the_files_are_listed_and_served_as_they_are(files: list[Path]):
    client = TestClient(create_viewer(files), base_url=BASE_URL)
    listed = client.get("/v1/files").json()
    assert [one["name"] for one in listed] == ["ball.glb", "ring.glb", "broken.glb"]
    for one, file in zip(listed, files, strict=True):
        answer = client.get(one["url"])
        assert answer.headers["content-type"] == "model/gltf-binary"
        assert answer.content == file.read_bytes()


@pytest.mark.parametrize("path", ["/v1/files/3.glb", "/v1/files/-1.glb", "/static/../mesh_viewer.py"])
def test_nothing_else_is_served(files: list[Path], path: str):
    assert TestClient(create_viewer(files), base_url=BASE_URL).get(path).status_code == 404


def test_the_page_may_load_nothing_from_elsewhere(files: list[Path]):
    client = TestClient(create_viewer(files), base_url=BASE_URL)
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400


def test_what_cannot_be_viewed_is_named(files: list[Path], tmp_path: Path):
    with pytest.raises(ValueError, match="give at least one"):
        create_viewer([])
    with pytest.raises(ValueError, match=r"chair\.obj cannot be viewed here"):
        create_viewer([tmp_path / "chair.obj"])
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.glb"):
        create_viewer([tmp_path / "gone.glb"])


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SOFTWARE_GL = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@pytest.fixture(scope="module")
def tab(files: list[Path]) -> Iterator[Any]:
    import threading
    import time

    import uvicorn

    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    server = uvicorn.Server(uvicorn.Config(create_viewer(files), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(SOFTWARE_GL), headless=True)
        tab = browser.new_page(viewport={"width": 900, "height": 600}, reduced_motion="reduce")
        tab.complaints = []
        tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.goto(f"{BASE_URL}:{port}/")
        yield tab
        browser.close()
    server.should_exit = True
    thread.join(10)


def middle(tab: Any) -> tuple[int, ...]:
    """The colour in the middle of the canvas, from a screenshot."""
    import io

    from PIL import Image

    tab.wait_for_timeout(300)
    picture = np.asarray(Image.open(io.BytesIO(tab.locator("#canvas").screenshot())).convert("RGB"))
    return tuple(map(int, picture[picture.shape[0] // 2, picture.shape[1] // 2]))


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_a_browser_draws_what_is_in_the_file(tab: Any):
    tab.wait_for_function("() => document.body.dataset.shown === 'ball.glb'")
    assert tab.text_content("#faces") == "320"
    red, green, blue = middle(tab)
    assert red > 90
    assert red > 2 * max(green, blue)

    tab.click("[data-shading=clay]")
    grey = middle(tab)
    assert max(grey) - min(grey) < 12

    tab.click("text=ring.glb")
    tab.wait_for_function("() => document.body.dataset.shown === 'ring.glb'")
    assert max(middle(tab)) < 60  # one looks through the hole at the dark ground

    tab.click("text=broken.glb")
    tab.wait_for_function("() => !document.querySelector('#message').hidden")
    assert tab.text_content("#message") == "broken.glb: this is not a GLB file"
    assert tab.complaints == []
