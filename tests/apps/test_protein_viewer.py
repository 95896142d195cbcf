"""The page that shows designs: what it serves, and what a real browser makes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from fewstep.apps.protein_viewer import create_viewer
from fewstep.modalities.protein.design_table import measured
from fewstep.modalities.protein.shards import Shard, ShardFolder
from tests.apps.hands import Hand, Keyboard, Mouse

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
    rows = [{"design": i, "seed": 2**60 + i, "length": len(chain)} | row for i, (chain, row) in
            enumerate(zip(chains, measured(chains), strict=True))]  # fmt: skip
    rows[1]["sequence"] = "MKTAYIAKQRQI"
    run.write(0, Shard(chains=chains, rows=rows))
    return out


def test_finished_designs_are_listed_and_served(folder: Path) -> None:
    client = TestClient(create_viewer(folder), base_url=BASE_URL)
    listed = client.get("/v1/designs").json()
    assert listed["total"] == 4
    assert [row["design"] for row in listed["designs"]] == [0, 1, 2]
    assert [row["valid"] for row in listed["designs"]] == [True, True, False]
    assert "structure" not in listed["designs"][0]
    assert listed["designs"][1]["seed"] == str(2**60 + 1)  # no browser has such a number
    one = client.get("/v1/designs/1").json()
    assert np.asarray(one["ca"]) == pytest.approx(strand(12), abs=1e-3)
    assert one["row"]["structure"].count("E") > 6
    pdb = client.get("/v1/designs/0.pdb")
    assert pdb.headers["content-type"].startswith("chemical/x-pdb")
    assert pdb.text.count("ATOM  ") == pdb.text.count(" GLY A") - 1 == 24 * 4  # and one in TER
    assert " CA  LYS A   2" in client.get("/v1/designs/1.pdb").text  # its designed sequence


@pytest.mark.parametrize(
    "path", ["/v1/designs/3", "/v1/designs/99.pdb", "/v1/designs/-1", "/static/../protein.py"]
)
def test_nothing_else_is_served(folder: Path, path: str) -> None:
    assert TestClient(create_viewer(folder), base_url=BASE_URL).get(path).status_code == 404


def test_the_page_may_load_nothing_from_elsewhere(folder: Path) -> None:
    client = TestClient(create_viewer(folder), base_url=BASE_URL)
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    for path in ("", "static/proteins.css", "static/js/main.js", "static/viewers/js/protein_stage.js"):
        answer = client.get(f"/{path}")
        assert answer.status_code == 200
        assert "http://" not in answer.text
        assert "https://" not in answer.text
    assert client.get("/static/viewers/vendor/3dmol.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400


def test_a_folder_without_designs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"it has no run\.json"):
        create_viewer(tmp_path)
    ShardFolder.open(tmp_path / "new", {}, count=1, size=1)
    with pytest.raises(FileNotFoundError, match="no finished design yet"):
        create_viewer(tmp_path / "new")


@pytest.fixture(scope="module")
def tab(folder: Path, open_page: Callable[[Any], Any]) -> Any:
    return open_page(create_viewer(folder))


def choose(tab: Any, number: int) -> None:
    tab.click(f"#files li[data-design='{number}'] button")
    tab.wait_for_function(f"() => document.body.dataset.shown === '{number}'")


def drawn(picture: np.ndarray) -> tuple[int, int]:
    """How many pixels are clearly red, and clearly blue."""
    red, blue = picture[..., 0], picture[..., 2]
    return int((red > 1.5 * blue + 30).sum()), int((blue > 1.5 * red + 30).sum())


@pytest.mark.browser
def test_a_browser_draws_helices_red_and_strands_blue(tab: Any, seen: Callable[[str], np.ndarray]) -> None:
    choose(tab, 0)
    red, blue = drawn(seen("#molecule"))
    assert red > 3000
    assert blue < red / 20
    assert "helix (P-SEA)" in tab.text_content("#metrics")

    choose(tab, 1)
    red, blue = drawn(seen("#molecule"))
    assert blue > 1500
    assert red < blue / 20

    tab.click("[data-colouring=chain]")
    red, blue = drawn(seen("#molecule"))
    assert min(red, blue) > 300  # blue at one end, red at the other
    tab.click("[data-colouring=structure]")

    assert tab.locator("#files li").count() == 3
    tab.check("#only-valid")
    assert tab.locator("#files li").count() == 2
    tab.select_option("#order", "helix")
    assert tab.locator("#files li").first.get_attribute("data-design") == "0"
    assert tab.complaints == []
    assert tab.foreign == []


@pytest.mark.browser
@pytest.mark.slow
def test_the_eye_goes_around_by_keys_and_comes_home(tab: Any, go_around: Callable[..., None]) -> None:
    choose(tab, 0)
    go_around("#molecule", lambda picture: drawn(picture)[0])


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("hand_of", [Keyboard, Mouse])
def test_every_control_is_used(tab: Any, hand_of: type[Hand], use_tools: Callable[[Hand, str], None]) -> None:
    """With the keyboard alone, and with the mouse."""
    choose(tab, 0)
    tab.uncheck("#only-valid")
    tab.select_option("#order", "design")
    hand = hand_of(tab)
    hand.press("#order", "ArrowDown")
    if hand_of is Mouse:
        tab.keyboard.press("ArrowDown")  # a click opens the list
        tab.keyboard.press("Enter")
    assert tab.input_value("#order") == "length"
    hand.press("#only-valid", "Space")
    assert tab.locator("#files li").count() == 2
    hand.press("#files li:nth-child(2) button", "Space")
    tab.wait_for_function("() => document.body.dataset.shown === '1'")
    hand.press_all("#colouring")
    use_tools(hand, "#molecule")
    with tab.expect_download() as waiting:
        hand.press("#download")
    assert Path(waiting.value.path()).read_text().count("ATOM  ") == 12 * 4
    hand.press("aside", "PageDown")
    hand.press("#colouring button")
    assert hand.unused() == set()
    tab.uncheck("#only-valid")


@pytest.mark.browser
def test_no_serious_barrier_is_found_by_axe(barriers: list[list[str]]) -> None:
    assert barriers == []


@pytest.mark.browser
def test_the_page_is_as_light_as_the_browser_wishes(follow_the_scheme: Callable[[], None]):
    follow_the_scheme()


@pytest.mark.browser
def test_nothing_sticks_out_on_a_phone(tab: Any) -> None:
    before = tab.viewport_size
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.wait_for_function("() => document.documentElement.scrollWidth === 390")
    tab.set_viewport_size(before)
