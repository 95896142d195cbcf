import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from fewstep.apps.cli import main
from fewstep.modalities.image import pipeline


@pytest.fixture(scope="module")
def tiny_image() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_image", Path(__file__).parents[1] / "tiny_image.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tiny_image: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_image.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def words(tiny_image: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "TextEncoder", tiny_image.WordFeatures)


def shown(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_a_picture_is_that_of_its_prompt_seed_steps_and_student(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "mug.png"
    arguments = ["--seed", "7", "--steps", "1", "--student", "tdm", "--model", str(folder)]
    assert main(["image", "a red mug", "-o", str(output), *arguments]) == 0
    model = pipeline.ImageModel.load(folder)
    expected = model.generate(["a red mug"], seeds=[7], steps=1, student="tdm")[0]
    assert np.array_equal(shown(output), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["mug.png"]


def test_several_pictures_are_numbered_and_the_teacher_makes_them_too(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "mug.png"
    arguments = ["--count", "2", "--seed", "3", "--student", "teacher", "--model", str(folder)]
    assert main(["image", "-o", str(output), *arguments]) == 0
    model = pipeline.ImageModel.load(folder)
    expected = model.teacher_samples(["a blue mug"] * 2, seeds=[3, 4])
    for number, picture in enumerate(expected, start=1):
        assert np.array_equal(shown(tmp_path / f"mug-{number}.png"), picture)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_write_keeps_the_old_picture(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "mug.png"
    output.write_bytes(b"old")

    def interrupt(self: Image.Image, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    assert main(["image", "a blue mug", "-o", str(output), "--model", str(folder)]) == 130
    assert output.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["   "], "prompt is empty"),
        (["x", "--steps", "3"], "steps=3: student dmd2 was distilled to 1, 2 steps"),
        (["x", "--student", "sit"], "student='sit' is unknown"),
        (["x", "--seed", "-1"], "seed=-1"),
        (["x", "--count", "0"], "--count must be 1 to 1000"),
        (["x", "-o", "missing/out.png"], "no folder"),
        (["x", "-o", "out.jpg"], "must end in .png"),
        (["x", "--model", "nowhere"], "no image model 'nowhere'"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_writes_nothing(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    full = ["--model", str(folder), "-o", "out.png", *arguments[1:]]
    assert main(["image", arguments[0], *full]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
