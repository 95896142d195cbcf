"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_it_shows_python() -> None:
    assert [("VideoModel" in block, "MeshModel" in block) for block in BLOCKS] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_of_the_readme(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (64, 64), (180, 190, 200))
    ImageDraw.Draw(picture).rectangle((20, 16, 42, 50), fill=(30, 60, 190))
    picture.save(tmp_path / "mug.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block, names)
    if "frames" in names:
        assert getattr(names["frames"], "shape", None) == (6, 96, 96, 3)
    else:
        assert (tmp_path / "mug.glb").stat().st_size > 10_000
