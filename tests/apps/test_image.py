from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from fewstep.apps.cli import main
from fewstep.modalities.image import pipeline
from tests import tiny_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_image.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
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
        (["x", "-o", "."], "must end in .png"),
        (["x", "-o", "folder.png"], "folder.png is a folder"),
        (["x", "--model", "nowhere"], "no image model 'nowhere'"),
        (["x", "--guidance", "2"], "add --student teacher"),
        (["x", "--guidance", "nan", "--student", "teacher"], "--guidance must be a number, got nan"),
        (["x", "--prompts", "words.txt"], "either PROMPT or --prompts"),
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
    Path("folder.png").mkdir()
    full = ["--model", str(folder), "-o", "out.png", *arguments[1:]]
    assert main(["image", arguments[0], *full]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_file_of_prompts_makes_what_each_makes_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With byte order mark and Windows' line ends; more than one batch."""
    words = tmp_path / "words.txt"
    words.write_bytes(b"\xef\xbb\xbfa red mug\r\n\r\n# not this\r\na blue chair\r\n")
    arguments = ["--count", "9", "--seed", "3", "--model", str(folder)]
    assert main(["image", "--prompts", str(words), "-o", str(tmp_path / "p.png"), *arguments]) == 0
    assert "p-18.png: 64x64, seed 11, a blue chair" in capsys.readouterr().out
    assert main(["image", "a blue chair", "-o", str(tmp_path / "q.png"), *arguments]) == 0
    for number in range(1, 10):
        together, alone = shown(tmp_path / f"p-{number + 9}.png"), shown(tmp_path / f"q-{number}.png")
        assert np.array_equal(together, alone)
        assert not np.array_equal(together, shown(tmp_path / f"p-{number}.png"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# only this\n\n", "holds no prompt"),
        (b"\xff\xfe\x00", "is no text in UTF-8"),
        (None, "--prompts: no file"),
        (b"a mug\n" * 10_001, "more than 10000 pictures"),
    ],
)
def test_a_file_of_no_prompts_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    words = tmp_path / "words.txt"
    if content is not None:
        words.write_bytes(content)
    full = ["--prompts", str(words), "-o", str(tmp_path / "p.png"), "--model", str(folder)]
    assert main(["image", *full]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_teachers_guidance_is_the_one_asked_for(folder: Path, tmp_path: Path) -> None:
    output, model = tmp_path / "mug.png", pipeline.ImageModel.load(folder)
    arguments = ["--student", "teacher", "--steps", "4", "--model", str(folder)]
    for scale in (1.0, 6.0):
        assert main(["image", "a mug", "-o", str(output), "--guidance", str(scale), *arguments]) == 0
        wanted = model.teacher_samples(["a mug"], seeds=[0], num_steps=4, guidance_scale=scale)[0]
        assert np.array_equal(shown(output), wanted)


def test_what_was_made_before_an_interruption_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = pipeline.ImageModel.decode, []

    def decode_once(self: pipeline.ImageModel, latents: Tensor) -> np.ndarray:
        calls.append(len(latents))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decode(self, latents)

    monkeypatch.setattr(pipeline.ImageModel, "decode", decode_once)
    arguments = ["--count", "20", "--model", str(folder), "-o", str(tmp_path / "m.png")]
    assert main(["image", "a mug", *arguments]) == 130
    assert calls == [16, 4]
    assert len(list(tmp_path.iterdir())) == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [("{half", "is not JSON"), ("[]", "does not say height"), ('{"fps": 12}', "does not say height")],
)
def test_a_folder_of_another_kind_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    """Of videos, for example."""
    (tmp_path / "pipeline.json").write_text(content)
    assert main(["image", "a mug", "-o", str(tmp_path / "mug.png"), "--model", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
