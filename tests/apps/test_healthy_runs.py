import re
from pathlib import Path

import pytest
from PIL import Image

from fewstep.apps.healthy_runs import CASES, main

DOCS = Path(__file__).parents[2] / "docs"
LARGEST = 150_000  # bytes of a picture in the documents


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_every_case_is_trained_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path), "--steps", "20"])
    for case in CASES:
        with Image.open(tmp_path / f"{case.name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(maxcolors=10**6) or []) > 10
    assert capsys.readouterr().out.splitlines()[0] == "a good run: 0 alarms"


def test_the_page_shows_every_case_in_a_small_picture() -> None:
    shown = re.findall(r"\((healthy-runs/[^)]+)\)", (DOCS / "healthy-runs.md").read_text())
    assert shown == [f"healthy-runs/{case.name}.png" for case in CASES]
    for name in shown:
        assert 0 < (DOCS / name).stat().st_size < LARGEST
