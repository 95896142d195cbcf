"""`fewstep eval mesh` on a small random model: all rows and columns, and what it refuses."""

import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from fewstep.apps.cli import main
from fewstep.apps.eval_mesh import DEFINITIONS, STAGES, UNITS, sheet_objects
from fewstep.modalities.shape3d.held_out import HeldOut

pytest.importorskip("scipy", reason="needs scipy: pip install 'fewstep[three-d]'")

OBJECTS = 2


def evaluate(folder: Path, *options: object) -> int:
    return main(["eval", "mesh", "--model", str(folder), *map(str, options)])


@pytest.fixture(scope="module")
def out(mesh_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patched:
        for module in ("held_out", "evaluation"):  # fewer points, as random surfaces take long to compare
            patched.setattr(f"fewstep.modalities.shape3d.{module}.POINTS", 2000)
        patched.setattr("fewstep.modalities.shape3d.held_out.CELLS", 64)
        options = ("--json", folder / "a.json", "--sheet", folder / "a.png", "--out", folder / "meshes")
        assert evaluate(mesh_folder, "--objects", OBJECTS, *options) == 0
    return folder


def test_students_and_teachers_of_few_and_many_steps_are_scored_alike(out: Path) -> None:
    records = json.loads((out / "a.json").read_text())
    rows = {(row["source"], row["steps"]) for row in records}
    made = {
        ("teacher", "3x3"),
        ("teacher", "2x2"),
        ("teacher", "1x2"),
        ("student", "2x2"),
        ("student", "1x2"),
    }
    assert rows == made | {("true", None)}
    values = {(row["source"], row["steps"], row["name"]): row["value"] for row in records}
    for row in made:
        assert {name for *key, name in values if tuple(key) == row} == {
            *UNITS,
            *STAGES,
            "total",
            "speed_ratio",
        }
        assert values[*row, "made"] == 100
    assert values["teacher", "3x3", "speed_ratio"] == 1.0
    for source, steps in made:  # nobody knows of a random model's meshes
        assert values[source, steps, "chamfer"] > 2 * values["true", None, "chamfer"]
        assert values[source, steps, "f_score_2"] < values["true", None, "f_score_2"]
    assert all(row["split"] == "val" and row["objects"] == OBJECTS for row in records)


def test_every_column_is_defined(mesh_folder: Path) -> None:
    for name in UNITS:
        assert name in DEFINITIONS
    assert "speed_ratio" in DEFINITIONS


def test_the_meshes_that_were_scored_can_be_looked_at(out: Path) -> None:
    assert len(list((out / "meshes").rglob("*.glb"))) == 5 * OBJECTS
    with Image.open(out / "a.png") as sheet:
        assert sheet.width > 6 * 128
        assert sheet.height > 8 * 128


def test_a_sheet_shows_as_many_categories_as_there_are() -> None:
    chosen = sheet_objects([HeldOut(number) for number in range(3)])
    assert len(chosen) == len({one.number for one in chosen}) == 16
    assert [one.number for one in chosen[:3]] == [0, 1, 2]  # three categories
    assert len({one.category for one in chosen}) >= 12  # of 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--objects", 1), "--objects must be at least 2, got 1"),
        (("--threads", 0), "--threads must be at least 1, got 0"),
        (("--sheet", "a.jpg"), "--sheet must be a .png file"),
        (("--out", __file__), "--out must be a folder"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(
    mesh_folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], message: str
) -> None:
    assert evaluate(mesh_folder, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_without_a_teacher_is_named(
    mesh_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(mesh_folder / "teacher") == 2
    assert "has no teacher; it holds one pipeline only" in capsys.readouterr().err


def test_models_of_words_are_refused_and_not_scored_as_failing(
    nano_mesh: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(nano_mesh.save_text(tmp_path / "text", "openai/clip-vit-large-patch14")) == 2
    assert "makes meshes of words; meshes of pictures are measured here" in capsys.readouterr().err
