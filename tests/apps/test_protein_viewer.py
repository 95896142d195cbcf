"""The page that shows designs: what it serves, and what a real browser makes of it."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from fewstep.apps.protein_viewer import create_viewer
from fewstep.modalities.protein.design_table import measured
from fewstep.modalities.protein.shards import Shard, ShardFolder

BASE_URL = "http://127.0.0.1"


def helix(residues: int) -> np.ndarray:
    turn = np.deg2rad(100.0) * np.arange(residues)
    return np.stack([2.3 * np.cos(turn), 1.5 * np.arange(residues) - 0.75 * residues, -2.3 * np.sin(turn)], 1)


def strand(residues: int) -> np.ndarray:
    turn = np.deg2rad(-170.0) * np.arange(residues)
    return np.stack([0.9 * np.cos(turn), 3.3 * np.arange(residues) - 1.65 * residues, -0.9 * np.sin(turn)], 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A helix, a strand, and a helix with a broken bond; a fourth design is not made yet."""
    broken = helix(24)
    broken[12:] += 9.0
    chains = [helix(24), strand(12), broken]
    out = tmp_path_factory.mktemp("designs") / "tiny"
    run = ShardFolder.open(out, {"seed": 0}, count=4, size=3)
    rows = [{"design": i, "seed": i, "length": len(chain)} | row for i, (chain, row) in
            enumerate(zip(chains, measured(chains), strict=True))]  # fmt: skip
    run.write(0, Shard(chains=chains, rows=rows))
    return out


def test_finished_designs_are_listed_and_served(folder: Path) -> None:
    client = TestClient(create_viewer(folder), base_url=BASE_URL)
    listed = client.get("/v1/designs").json()
    assert listed["total"] == 4
    assert [row["design"] for row in listed["designs"]] == [0, 1, 2]
    assert [row["valid"] for row in listed["designs"]] == [True, True, False]
    assert "structure" not in listed["designs"][0]
    one = client.get("/v1/designs/1").json()
    assert np.asarray(one["ca"]) == pytest.approx(strand(12), abs=1e-3)
    assert one["row"]["structure"].count("E") > 6
    pdb = client.get("/v1/designs/0.pdb")
    assert pdb.headers["content-type"].startswith("chemical/x-pdb")
    assert pdb.text.count("ATOM  ") == 24 * 4


@pytest.mark.parametrize(
    "path", ["/v1/designs/3", "/v1/designs/99.pdb", "/v1/designs/-1", "/static/../protein.py"]
)
def test_nothing_else_is_served(folder: Path, path: str) -> None:
    assert TestClient(create_viewer(folder), base_url=BASE_URL).get(path).status_code == 404


def test_the_page_may_load_nothing_from_elsewhere(folder: Path) -> None:
    client = TestClient(create_viewer(folder), base_url=BASE_URL)
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for text in (page.text, *(client.get(f"/static/{name}").text for name in
                              ("proteins.css", "js/main.js", "js/panel.js", "js/tube.js"))):  # fmt: skip
        assert "http://" not in text
        assert "https://" not in text
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400


def test_a_folder_without_designs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"it has no run\.json"):
        create_viewer(tmp_path)
    ShardFolder.open(tmp_path / "new", {}, count=1, size=1)
    with pytest.raises(FileNotFoundError, match="no finished design yet"):
        create_viewer(tmp_path / "new")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SOFTWARE_GL = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@pytest.fixture(scope="module")
def tab(folder: Path) -> Iterator[Any]:
    import threading
    import time

    import uvicorn

    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    server = uvicorn.Server(uvicorn.Config(create_viewer(folder), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(SOFTWARE_GL), headless=True)
        tab = browser.new_page(viewport={"width": 1100, "height": 650}, reduced_motion="reduce")
        tab.complaints = []
        tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.goto(f"{BASE_URL}:{port}/")
        yield tab
        browser.close()
    server.should_exit = True
    thread.join(10)


def drawn(tab: Any) -> tuple[float, float]:
    """How many pixels of the canvas are clearly red, and clearly blue."""
    from PIL import Image

    tab.wait_for_timeout(300)
    picture = np.asarray(Image.open(io.BytesIO(tab.locator("#canvas").screenshot())).convert("RGB")).astype(
        int
    )
    red, blue = picture[..., 0], picture[..., 2]
    return float((red > 1.5 * blue + 30).sum()), float((blue > 1.5 * red + 30).sum())


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_a_browser_draws_helices_red_and_strands_blue(tab: Any) -> None:
    tab.wait_for_function("() => document.body.dataset.shown === '0'")
    red, blue = drawn(tab)
    assert red > 3000
    assert blue < red / 20
    assert "helix (P-SEA)" in tab.text_content("#metrics")

    tab.click("#files li[data-design='1'] button")
    tab.wait_for_function("() => document.body.dataset.shown === '1'")
    red, blue = drawn(tab)
    assert blue > 1500
    assert red < blue / 20

    tab.click("[data-colouring=chain]")
    red, blue = drawn(tab)
    assert min(red, blue) > 300  # blue at one end, red at the other

    assert tab.locator("#files li").count() == 3
    tab.check("#only-valid")
    assert tab.locator("#files li").count() == 2
    tab.select_option("#order", "helix")
    assert tab.locator("#files li").first.get_attribute("data-design") == "0"
    assert tab.complaints == []
