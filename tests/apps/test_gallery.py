"""The page of a folder's assets: what is found and served, and what a browser makes of it."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from fewstep.apps.assets import find_assets, folder_records, read_chains
from fewstep.apps.gallery import create_gallery
from fewstep.modalities.protein.files import Format, structure_bytes
from fewstep.streaming.recording import Mp4Writer
from tests.apps.hands import Hand, Keyboard, Mouse

trimesh = pytest.importorskip("trimesh", reason="needs trimesh: pip install 'fewstep[three-d]'")

BASE_URL = "http://127.0.0.1"
PROMPTS = ["a car drives on the left", "a car drives on the right"]


def helix(residues: int) -> np.ndarray:
    turn = np.deg2rad(100.0) * np.arange(residues)
    return np.stack([2.3 * np.cos(turn), 1.5 * np.arange(residues), -2.3 * np.sin(turn)], 1, dtype=np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind, with what our commands write beside them, and what must not be shown.

    The protein is CA atoms alone, of which 3Dmol's usual cartoon shows nothing.
    """
    root = tmp_path_factory.mktemp("assets") / "gallery"
    (root / "structures").mkdir(parents=True)
    ball = trimesh.creation.icosphere(subdivisions=1)
    ball.visual.vertex_colors = np.tile(np.array([[200, 20, 20, 255]], np.uint8), (len(ball.vertices), 1))
    ball.export(root / "ball.glb")
    Image.fromarray(np.full((32, 32, 3), (20, 160, 40), np.uint8)).save(root / "green.png")
    video = Mp4Writer(root / "drive.mp4", fps=12.0, width=32, height=32, metadata={})
    video.write(np.full((12, 32, 32, 3), (20, 40, 200), np.uint8))
    video.close()
    cues = [{"chunk": 3 * number, "prompt": prompt} for number, prompt in enumerate(PROMPTS)]
    (root / "drive.json").write_text(json.dumps({"seed": 2**60 + 1, "model": "driving", "cues": cues}))
    design = root / "structures" / "design-000000.pdb"
    design.write_bytes(structure_bytes(helix(24)[:, None], kind="pdb", title="x"))
    with (root / "designs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "length", "valid", "helix", "nearest"])
        table.writerow(["structures/design-000000.pdb", "24", "True", "0.75", ""])
        table.writerow(["/etc/passwd", "1", "False", "nan", "x"])
    (root / "eval.json").write_text(json.dumps([{"name": "designable", "value": 0.5, "unit": "share"}, 3]))
    (root / "broken.json").write_text("{")
    (root / "notes.txt").write_text("not shown")
    (root / ".hidden.png").write_bytes(b"x")
    (root / "rec_x.part.mp4").write_bytes(b"x")
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(b"secret")
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "linked").symlink_to(outside)
    return root


def test_what_can_be_shown_is_found_with_its_metrics_and_nothing_else(folder: Path):
    found = {asset.name: asset for asset in find_assets(folder)}
    assert {name: asset.kind for name, asset in found.items()} == {
        "ball.glb": "mesh",
        "drive.mp4": "video",
        "green.png": "picture",
        "structures/design-000000.pdb": "protein",
    }
    assert found["ball.glb"].metrics == {}
    assert found["drive.mp4"].metrics == {
        "seed": 2**60 + 1,
        "model": "driving",
        "prompt": " \u2192 ".join(PROMPTS),
    }
    assert found["structures/design-000000.pdb"].metrics == {"length": 24, "valid": True, "helix": 0.75}
    assert folder_records(folder) == [{"report": "eval", "name": "designable", "value": 0.5, "unit": "share"}]


def test_chains_are_read_from_the_first_model_alone(tmp_path: Path):
    atoms = structure_bytes(helix(6)[:, None], kind="pdb").decode().replace("END\n", "")
    second = "".join(
        line[:21] + "B" + line[22:] if line.startswith("ATOM") else line for line in atoms.splitlines(True)
    )
    (tmp_path / "two.pdb").write_text(f"{atoms}{second}ENDMDL\n{atoms}")
    chains = read_chains(tmp_path / "two.pdb")
    assert {name: len(chain) for name, chain in chains.items()} == {"A": 6, "B": 6}
    assert chains["B"] == pytest.approx(helix(6), abs=1e-3)
    (tmp_path / "nonsense.pdb").write_bytes(
        bytes(range(256)) * 9 + b"\nATOM  x CA\nATOM      1  CA  GLY A   1"
    )
    assert read_chains(tmp_path / "nonsense.pdb") == {}


@pytest.mark.parametrize("kind", ["cif", "bcif"])
def test_mmcif_files_are_drawn_like_pdb_files(tmp_path: Path, kind: Format):
    pytest.importorskip("biotite", reason="needs biotite: pip install 'fewstep[protein]'")
    content = structure_bytes(helix(24)[:, None], kind=kind)
    (tmp_path / f"design.{kind}").write_bytes(content)
    (tmp_path / f"spoilt.{kind}").write_bytes(content[:80])
    client = TestClient(create_gallery(tmp_path), base_url=BASE_URL)
    assert [asset["kind"] for asset in client.get("/v1/assets").json()["assets"]] == ["protein"] * 2
    assert client.get("/v1/assets/0").content == content
    drawn = client.get("/v1/assets/0/pdb").text
    assert drawn.count("ATOM  ") == drawn.count(" CA  GLY A") == 24
    assert client.get("/v1/assets/0/structure").json()["A"].count("H") > 12
    for path in ("/v1/assets/1/pdb", "/v1/assets/1/structure"):
        answer = client.get(path)
        assert answer.status_code == 422
        assert f"spoilt.{kind} cannot be drawn" in answer.json()["detail"]


def test_files_are_served_by_number_as_they_are(folder: Path):
    client = TestClient(create_gallery(folder), base_url=BASE_URL)
    content = client.get("/v1/assets").json()
    assert content["folder"] == "gallery"
    assert content["assets"][1]["metrics"]["seed"] == "1152921504606846977"  # no browser has such a number
    assert client.get("/").text == client.get("/gallery").text
    for asset in content["assets"]:
        answer = client.get(asset["url"])
        assert answer.content == (folder / asset["name"]).read_bytes()
    types = [client.get(asset["url"]).headers["content-type"] for asset in content["assets"]]
    assert types == ["model/gltf-binary", "video/mp4", "image/png", "chemical/x-pdb"]
    assert client.get("/v1/assets/1", headers={"Range": "bytes=0-3"}).status_code == 206
    assert client.get("/v1/assets/3/pdb").text == client.get("/v1/assets/3").text
    structure = client.get("/v1/assets/3/structure").json()
    assert len(structure["A"]) == 24
    assert structure["A"].count("H") > 12


@pytest.mark.parametrize(
    "path",
    [
        "/v1/assets/4",
        "/v1/assets/-1",
        "/v1/assets/0/structure",
        "/v1/assets/0/pdb",
        "/v1/assets/..%2Fnotes.txt",
        "/v1/assets/notes.txt",
        "/static/../gallery.py",
        "/static/%2e%2e/%2e%2e/gallery.py",
        "/notes.txt",
    ],
)
def test_nothing_else_is_served(folder: Path, path: str):
    assert TestClient(create_gallery(folder), base_url=BASE_URL).get(path).status_code in (404, 422)


def test_what_came_later_or_was_replaced_by_a_link_is_not_served(folder: Path, tmp_path: Path):
    own = shutil.copytree(folder, tmp_path / "own", symlinks=True)
    client = TestClient(create_gallery(own), base_url=BASE_URL)
    (own / "green.png").unlink()
    (own / "green.png").symlink_to(folder / "notes.txt")
    (own / "new.png").write_bytes(b"x")
    assert client.get("/v1/assets/2").status_code == 404
    assert len(client.get("/v1/assets").json()["assets"]) == 4


def test_what_others_wrote_into_the_folder_keeps_nothing_from_being_shown(tmp_path: Path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.png")).write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "a.json").write_text('{"large": 1e999, "half": "\\ud800", "\\ud801": 1, "fine": 3}')
    (tmp_path / "long.csv").write_text("file,text\na.png," + "y" * 200_000 + "\n")
    (tmp_path / "metrics.csv").write_text("file,score\na.png,0.5\n")
    client = TestClient(create_gallery(tmp_path), base_url=BASE_URL)
    first, second = client.get("/v1/assets").json()["assets"]
    assert first["metrics"] == {"score": 0.5, "half": "?", "?": 1, "fine": 3}
    assert second["name"] == "b?.png"
    assert client.get(second["url"]).status_code == 200


def test_the_page_may_load_nothing_from_elsewhere(folder: Path):
    client = TestClient(create_gallery(folder), base_url=BASE_URL)
    assert "default-src 'self'" in client.get("/").headers["content-security-policy"]
    for path in ("/", "/static/main.js", "/static/gallery.css", "/static/viewers/js/page.js"):
        text = client.get(path).text
        assert "http://" not in text
        assert "https://" not in text
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400


def test_a_folder_without_assets_is_refused_in_one_line(tmp_path: Path, capsys: Any):
    from fewstep.apps.cli import main

    for path, text in ((tmp_path / "gone", "no folder"), (tmp_path, "holds nothing to show")):
        assert main(["gallery", str(path)]) == 2
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1


@pytest.fixture(scope="module")
def tab(folder: Path, open_page: Callable[[Any], Any]) -> Any:
    return open_page(create_gallery(folder))


def middle(picture: np.ndarray) -> np.ndarray:
    return picture[picture.shape[0] // 2, picture.shape[1] // 2]


def redness(picture: np.ndarray) -> int:
    """How many pixels are clearly red."""
    return int((picture[..., 0] > 1.5 * picture[..., 2] + 30).sum())


SMALL_PICTURE_IS_RED = """(selector) => {
    const canvas = document.querySelector(selector);
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let red = 0;
    for (let i = 0; i < data.length; i += 4) red += data[i] > 1.5 * data[i + 2] + 30;
    return red > 500;
}"""


@pytest.mark.browser
@pytest.mark.slow
def test_a_browser_shows_each_kind_and_what_is_known_of_it(tab: Any, seen: Callable[[str], np.ndarray]):
    choose = "nav button[data-name='{}']"
    shown = "() => document.body.dataset.shown === '{}'"
    tab.wait_for_function(shown.format("ball.glb"))
    red, green, blue = middle(seen("#canvas"))
    assert red > 2 * max(green, blue)
    for name, selector, brightest in (("green.png", "#picture", 1), ("drive.mp4", "#video", 2)):
        tab.click(choose.format(name))
        tab.wait_for_function(shown.format(name))
        colour = middle(seen(selector))
        assert colour[brightest] == max(colour)
    assert PROMPTS[1] in tab.text_content("#metrics")
    design = "structures/design-000000.pdb"
    tab.focus(choose.format(design))
    tab.keyboard.press("Enter")
    tab.wait_for_function(shown.format(design))
    assert redness(seen("#molecule")) > 3000  # a helix
    assert "75 %" in tab.text_content("#metrics")
    assert tab.is_visible("#colouring")
    assert not tab.is_visible("#wireframe")
    for name in ("ball.glb", design):
        tab.wait_for_function(SMALL_PICTURE_IS_RED, arg=f"{choose.format(name)} canvas")
    tab.click("#kinds [data-kinds=picture]")
    assert tab.locator("#files li").count() == 1
    tab.click("#kinds [data-kinds=all]")
    assert tab.complaints == []
    assert tab.foreign == []


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("hand_of", [Keyboard, Mouse])
def test_every_control_is_used(
    tab: Any, folder: Path, hand_of: type[Hand], use_tools: Callable[[Hand, str], None]
):
    """Of every kind of file, with the keyboard alone, and with the mouse."""
    hand = hand_of(tab)
    hand.press_all("#kinds")
    hand.press("#kinds button")
    hand.press("aside", "PageDown")
    parts = {
        "ball.glb": ("#canvas", "#shading", "#wireframe"),
        "drive.mp4": ("#video",),
        "green.png": (),
        "structures/design-000000.pdb": ("#molecule", "#colouring"),
    }
    for name, controls in parts.items():
        hand.press(f"nav button[data-name='{name}']", "Space")
        tab.wait_for_function("(name) => document.body.dataset.shown === name", arg=name)
        if name.endswith(("glb", "pdb")):
            hand.press_all(controls[1])
            use_tools(hand, controls[0])
        if "#wireframe" in controls:
            hand.press_on_and_off("#wireframe")
        if controls == ("#video",):
            hand.press("#video", "Space")
            tab.wait_for_function("() => video.currentTime > 0")
        with tab.expect_download() as waiting:
            hand.press("#download")
        assert Path(waiting.value.path()).read_bytes() == (folder / name).read_bytes()
        assert hand.unused() == set()
    assert tab.complaints == []


LISTEN = """() => {
    const shown = () => document.body.dataset.shown === "drive.mp4";
    video.addEventListener("loadeddata", () => { window.early = shown(); }, { capture: true });
}"""


@pytest.mark.browser
@pytest.mark.slow
def test_a_video_counts_as_shown_when_its_buttons_work(tab: Any):
    """`readyState` is ahead of the event after which Chromium's buttons take clicks and keys."""
    choose, shown = "nav button[data-name='{}']", "(name) => document.body.dataset.shown === name"
    tab.click(choose.format("green.png"))
    tab.wait_for_function(shown, arg="green.png")
    tab.evaluate(LISTEN)
    tab.click(choose.format("drive.mp4"))
    tab.wait_for_function(shown, arg="drive.mp4")
    assert tab.evaluate("early") is False


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("name", ["broken.png", "broken.mp4"])
def test_a_file_that_cannot_be_shown_says_so(tmp_path: Path, open_page: Callable[[Any], Any], name: str):
    (tmp_path / name).write_bytes(b"x")
    page = open_page(create_gallery(tmp_path))
    page.wait_for_function("(name) => message.textContent.startsWith(`${name}: `)", arg=name)
    page.close()


@pytest.mark.browser
@pytest.mark.slow
def test_no_serious_barrier_is_found_by_axe(barriers: list[list[str]]):
    assert barriers == []


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_is_as_light_as_the_browser_wishes(follow_the_scheme: Callable[[], None]):
    follow_the_scheme()


@pytest.mark.browser
@pytest.mark.slow
def test_nothing_sticks_out_on_a_phone(tab: Any):
    before = tab.viewport_size
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.wait_for_function("() => document.documentElement.scrollWidth === 390")
    tab.set_viewport_size(before)
