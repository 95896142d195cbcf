"""Packing: runs go in, a folder that makes pictures comes out, and nothing but whole folders is ever left."""

import hashlib
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from fewstep.apps.cli import main
from fewstep.core.checkpoints import CARD, WEIGHTS, Guidance, read_card
from fewstep.modalities.image.model_folder import load_transformer, preset_part, save_transformer
from fewstep.modalities.image.packing import pack_objects
from fewstep.modalities.image.pipeline import ImageModel

pytestmark = pytest.mark.usefixtures("word_features")


@pytest.fixture
def runs(tiny_image: ModuleType, tmp_path: Path) -> Path:
    """`runs/NAME/model` for each network, as training leaves them."""
    training = {
        name: {"model": {"init_args": {"roles": {"init_args": {"renoise": rollout}}}}}
        for name, rollout in {"dmd2": "fresh", "tdm": "ddim", "split_mean_flow": "fresh"}.items()
    }
    flat = tmp_path / "flat"
    tiny_image.save_networks(flat, students=".", training=training)
    for folder in flat.iterdir():
        (tmp_path / "runs" / folder.name).mkdir(parents=True)
        folder.rename(tmp_path / "runs" / folder.name / "model")
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "runs" / "dmd2" / "curves.png")
    return tmp_path / "runs"


def pack(runs: Path, *options: str) -> Path:
    folder = runs.parent / "packed"
    arguments = ["--world", "objects", "--runs", str(runs), "-o", str(folder), "--steps", "2", *options]
    assert main(["pack", *arguments]) == 0
    return folder


def test_a_packed_folder_makes_pictures_with_the_rollouts_its_students_were_distilled_with(
    runs: Path,
) -> None:
    folder = pack(runs)
    model = ImageModel.load(folder)
    rollouts = {name: entry["rollout"] for name, entry in model.card["students"].items()}
    assert rollouts == {"dmd2": "fresh", "tdm": "ddim", "split_mean_flow": "flow_map"}
    assert model.card["teacher"] == {"num_steps": 32, "guidance_scale": 2.5, "shift": 1.0}
    for name in model.students:
        assert model.generate([model.default_prompt], seeds=[0], student=name).shape == (1, 64, 64, 3)
    with Image.open(folder / "training" / "dmd2.png") as curves:
        assert (curves.mode, curves.size, curves.convert("RGB").getpixel((3, 3))) == (
            "P",
            (40, 30),
            (200, 30, 30),
        )


def test_weights_are_stored_in_half_precision_with_their_training(runs: Path) -> None:
    folder = pack(runs)
    card = read_card(folder / "students" / "tdm")
    assert card.storage_dtype == "bfloat16"
    assert card.training == read_card(runs / "tdm" / "model").training
    assert read_card(folder / "classifier").storage_dtype == "bfloat16"


def test_packing_again_keeps_measurements_and_replaces_the_rest(runs: Path) -> None:
    folder = pack(runs)
    (folder / "reference.json").write_text("{}")
    pack(runs, "--student", "tdm", "--steps", "1")
    model = ImageModel.load(folder)
    assert (folder / "reference.json").read_text() == "{}"
    assert (model.default_student, model.default_steps) == ("tdm", 1)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_damaged_student_leaves_the_old_folder_as_it_was(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pack(runs)
    before = contents(folder)
    weights = runs / "tdm" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert main(["pack", "--world", "objects", "--runs", str(runs), "-o", str(folder), "--steps", "2"]) == 2
    assert "tdm" in capsys.readouterr().err
    assert contents(folder) == before
    assert sorted(path.name for path in runs.parent.iterdir()) == ["flat", "packed", "runs"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "3"], "steps=3: dmd2 has grids for 1, 2 steps"),
        (["--student", "sid", "--steps", "2"], "student='sid' is not among"),
    ],
)
def test_what_the_students_lack_is_refused_and_writes_nothing(
    runs: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    folder = runs.parent / "packed"
    assert main(["pack", "--world", "objects", "--runs", str(runs), "-o", str(folder), *options]) == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


def test_students_of_different_guidance_are_refused(runs: Path) -> None:
    path = runs / "tdm" / "model" / CARD
    path.write_text(path.read_text().replace('"scale": 2.5', '"scale": 4.0'))
    with pytest.raises(ValueError, match="different guidance scales"):
        pack_objects(
            runs.parent / "packed",
            codec=runs / "codec" / "model",
            teacher=runs / "teacher" / "model",
            students={name: runs / name / "model" for name in ("dmd2", "tdm")},
            default_student="dmd2",
            default_steps=2,
            teacher_steps=8,
        )


def test_a_foreign_folder_is_not_replaced(runs: Path) -> None:
    (runs.parent / "packed").mkdir()
    (runs.parent / "packed" / "mine.txt").write_text("keep")
    arguments = ["--runs", str(runs), "-o", str(runs.parent / "packed"), "--steps", "2"]
    assert main(["pack", "--world", "objects", *arguments]) == 2
    assert (runs.parent / "packed" / "mine.txt").read_text() == "keep"


def test_a_student_of_the_bundled_teacher_is_packed_with_its_teacher_and_codec(tmp_path: Path) -> None:
    student = load_transformer(preset_part("objects", "teacher"))
    told = {"teacher": "objects", "codec": "objects", "renoise": "fresh"}
    save_transformer(
        tmp_path / "runs" / "first_student" / "model",
        student,
        training={"model": {"init_args": {"roles": {"init_args": told}}}},
        metrics={},
        step_grids={1: [1.0]},
        guidance=Guidance(scale=2.5, baked=True),
    )
    options = ["--runs", str(tmp_path / "runs"), "--student", "first_student", "--steps", "1"]
    assert main(["pack", "--world", "objects", *options, "-o", str(tmp_path / "mine")]) == 0
    for part in ("teacher", "codec"):
        given, packed = preset_part("objects", part), tmp_path / "mine" / part
        assert (packed / WEIGHTS).read_bytes() == (given / WEIGHTS).read_bytes()
    assert ImageModel.load(tmp_path / "mine").steps_available() == (1,)
