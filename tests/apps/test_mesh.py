"""`fewstep mesh` on a small random model: files, several inputs, resuming, and what it refuses."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fewstep.apps.cli import main
from fewstep.apps.mesh_sources import file_name
from fewstep.modalities.shape3d.pipeline import MeshModel, with_steps

trimesh = pytest.importorskip("trimesh", reason="needs trimesh: pip install 'fewstep[three-d]'")


@pytest.fixture
def folder(mesh_folder: Path) -> Path:
    return mesh_folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A red disc cut out."""
    pixels = np.zeros((40, 40, 4), np.uint8)
    rows, columns = np.mgrid[:40, :40]
    pixels[(rows - 20) ** 2 + (columns - 20) ** 2 < 150] = (200, 20, 20, 255)
    Image.fromarray(pixels).save(tmp_path / "disc.png")
    return tmp_path / "disc.png"


Command = Callable[..., int]


@pytest.fixture
def command(folder: Path) -> Command:
    def command(*arguments: object) -> int:
        return main(["mesh", *map(str, arguments), "--model", str(folder)])

    return command


def test_a_picture_becomes_a_mesh_file(command: Command, picture: Path, capsys: pytest.CaptureFixture[str]):
    output = picture.with_name("disc.glb")
    assert command(picture, "-o", output) == 0
    assert len(trimesh.load(output, force="mesh").faces) > 10
    told = capsys.readouterr().out
    assert told.startswith(f"{output}: ")
    assert "faces" in told
    assert "watertight" in told
    assert "structure" in told


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(command: Command, picture: Path):
    made = [picture.with_name(f"{name}.glb") for name in "abc"]
    for output, seed in zip(made, (3, 3, 4), strict=True):
        assert command(picture, "-o", output, "--seed", seed) == 0
    first, again, other = (output.read_bytes() for output in made)
    assert first == again != other


def test_a_folder_of_pictures_goes_into_a_folder_and_on_where_it_stopped(
    command: Command, picture: Path, capsys: pytest.CaptureFixture[str]
):
    Image.new("RGB", (30, 20), (40, 90, 160)).save(picture.with_name("plain.jpg"))
    out = picture.parent / "out"
    assert command(picture.parent, "-o", out, "--count", 2) == 0
    assert sorted(file.name for file in out.iterdir()) == [
        "disc-0.glb",
        "disc-1.glb",
        "plain-0.glb",
        "plain-1.glb",
    ]
    (out / "disc-1.glb").unlink()
    (out / "plain-0.glb").write_bytes(b"mine")
    capsys.readouterr()
    assert command(picture.parent, "-o", out, "--count", 2) == 0
    assert "3 of 4 files are there already" in capsys.readouterr().out
    assert (out / "disc-1.glb").exists()
    assert (out / "plain-0.glb").read_bytes() == b"mine"
    assert command(picture.parent, "-o", out, "--count", 2, "--overwrite") == 0
    assert (out / "plain-0.glb").read_bytes() != b"mine"


def test_what_cannot_be_made_of_a_folder_is_left_out_and_named(
    command: Command, picture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (picture.parent / "broken.png").write_text("no picture at all")
    Image.new("RGBA", (20, 20)).save(picture.with_name("clear.png"))
    out = picture.parent / "out.v2"
    out.mkdir()  # a folder, whatever its name ends in
    opened = []
    monkeypatch.setattr(Image, "open", lambda path, open=Image.open: opened.append(path.name) or open(path))
    monkeypatch.setattr(MeshModel, "generate", seen_between(opened, MeshModel.generate))
    assert command(picture.parent, "-o", out) == 1
    assert [file.name for file in out.iterdir()] == ["disc.glb"]
    assert opened == ["broken.png", "clear.png", "made", "disc.png", "made"]  # one at a time
    told = capsys.readouterr()
    left_out = [line for line in told.err.splitlines() if "left out" in line]
    assert len(left_out) == 2
    assert "broken.png, seed 0: broken.png cannot be read as a picture" in left_out[0]
    assert "clear.png, seed 0: picture has no opaque pixel" in left_out[1]
    assert "2 of 3 could not be made" in told.err
    assert command(picture, "-o", out) == 0
    assert "1 of 1 files are there already" in capsys.readouterr().out
    (picture.parent / "broken.png").unlink()
    assert command(picture.parent, "-o", out) == 1  # also where it is all that is left to make
    assert "clear.png" in capsys.readouterr().err


def seen_between(seen: list[str], generate: Callable[..., Any]) -> Callable[..., Any]:
    def generated(self: MeshModel, *arguments: Any, **options: Any) -> Any:
        seen.append("made")
        return generate(self, *arguments, **options)

    return generated


def test_words_become_a_picture_first(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Path
):
    asked: list[tuple[list[str], list[int]]] = []

    class Drawing:
        @classmethod
        def load(cls, name: str, *, device: str) -> "Drawing":
            return cls()

        def generate(self, prompts: list[str], *, seeds: list[int]) -> np.ndarray:
            asked.append((prompts, seeds))
            return np.full((len(prompts), 16, 16, 3), 120, np.uint8)

    monkeypatch.setattr("fewstep.modalities.image.pipeline.ImageModel", Drawing)
    assert command("a blue mug", picture, "-o", tmp_path / "out", "--seed", 5) == 0
    assert asked == [(["a blue mug"], [5])]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"a-blue-mug.glb", "disc.glb"}


def test_a_budget_a_texture_and_other_formats(command: Command, picture: Path):
    pytest.importorskip("xatlas", reason="needs xatlas")
    pytest.importorskip("fast_simplification", reason="needs fast-simplification")
    assert command(picture, "-o", picture.with_name("a.obj"), "--faces", 200, "--floaters", 0.1) == 0
    assert len(trimesh.load(picture.with_name("a.obj"), force="mesh").faces) <= 200
    assert command(picture, "-o", picture.with_name("a.glb"), "--faces", 300, "--texture", 64) == 0
    read = trimesh.load(picture.with_name("a.glb"), force="mesh")
    assert read.visual.material.baseColorTexture.size == (64, 64)


def test_steps_and_teacher_change_what_is_evaluated(folder: Path, picture: Path):
    pictures = [Image.open(picture)]
    student, teacher = MeshModel.load(str(folder)), MeshModel.load(str(folder), teacher=True)
    assert (student.steps, teacher.steps) == ((1, 1), (3, 3))
    made = [
        next(student.generate(pictures, seeds=[0])),
        next(student.generate(pictures, seeds=[0], steps=(2, 1))),
        next(teacher.generate(pictures, seeds=[0])),
    ]
    assert [one.nfe for one in made] == [(1, 1), (2, 1), (6, 6)]  # the teacher is guided
    assert set(made[0].seconds) == {"picture", "structure", "latents", "decode", "surface"}
    assert made[0].mesh.colours is not None
    with pytest.raises(ValueError, match="steps=0x1"):
        with_steps(student.pipeline, (0, 1))
    with pytest.raises(ValueError, match="2 seeds for 1 sources"):
        next(student.generate(pictures, seeds=[0, 1]))
    with pytest.raises(ValueError, match="seed=4294967296 must be from 0"):
        next(student.generate(pictures, seeds=[2**32]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing.png", "-o", "a.glb"), "no picture nothing.png"),
        (("   ", "-o", "a.glb"), "prompt is empty"),
        (("w " * 1100, "-o", "a.glb"), "prompt has 2199 characters"),
        (
            ("a mug", "-o", "a.fbx"),
            "--output a.fbx must end in one of .glb, .ply, .obj, .stl, or be a folder",
        ),
        (("a mug", "a cup", "-o", "a.glb"), "--output a.glb is one file for 2 meshes; give a folder"),
        (("a mug", "-o", "a.glb", "--count", "0"), "--count must be 1 to 1000, got 0"),
        (("a mug", "-o", "a.glb", "--steps", "0x2"), "--steps '0x2' must be two numbers from 1 on"),
        (("a mug", "-o", "a.glb", "--steps", "2"), "--steps '2' must be two numbers from 1 on"),
        (("a mug", "-o", "a.ply", "--texture", "64"), "--texture needs a .glb file"),
        (("a mug", "-o", "a.glb", "--texture", "2"), "--texture must be 16 to 8192 pixels, got 2"),
        (("a mug", "-o", "a.glb", "--texture", "200000"), "--texture must be 16 to 8192 pixels"),
        (("a mug", "-o", "a.glb", "--faces", "3"), "--faces must be at least 4, got 3"),
        (("a mug", "-o", "a.glb", "--floaters", "nan"), "--floaters must be at least 0 and below 1, got nan"),
        (("a mug", "-o", "a.glb", "--seed", str(2**32)), "seed=4294967296 must be from 0 to 2^32 - 1"),
        (("a mug", "-o", "a.glb", "--seed", "-1"), "seed=-1 must be from 0 to 2^32 - 1"),
        (("a mug", "-o", "out", "--count", "2", "--seed", str(2**32 - 1)), "seed=4294967296 must be from"),
        (("mug.pgn", "-o", "a.glb"), "no file mug.pgn"),
        (("a mug", "-o", "taken"), "--output taken must end in one of .glb"),
        (("a mug", "-o", "a.stl", "--view"), "--view shows .glb files"),
        (("a mug", "-o", "a.glb", "--view", "--port", "70000"), "--port must be in 0..65535, got 70000"),
        (("a mug", "-o", "a.ply", "--together"), "--together needs two pictures or more of one object"),
        (("a mug", "-o", "a.ply", "--turns"), "--turns needs --together"),
        (("a mug", "-o", "a.glb", "--gaussians"), "--output a.glb must end in one of .ply, or be a folder"),
        (("a mug", "-o", "a.ply", "--gaussians", "--faces", "9"), "--faces and --texture are for meshes"),
        (("a mug", "a MUG!", "-o", "out"), "inputs a-mug would be written to the same file"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("option", "package"), [("--faces", "fast-simplification"), ("--texture", "xatlas")])
def test_a_package_that_is_missing_is_told_before_anything_is_made(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    package: str,
):
    found = importlib.util.find_spec
    missing = package.replace("-", "_")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    assert command("a mug", "-o", tmp_path / "a.glb", option, 64) == 2
    assert f"{option} needs {package}: pip install 'fewstep[three-d]'" in capsys.readouterr().err


def test_unusable_pictures_and_folders_are_named(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "text.png").write_text("no picture at all")
    assert command(tmp_path / "text.png", "-o", tmp_path / "a.glb") == 2
    assert "cannot be read as a picture" in capsys.readouterr().err
    Image.new("RGBA", (20, 20)).save(tmp_path / "clear.png")
    assert command(tmp_path / "clear.png", "-o", tmp_path / "a.glb") == 2
    assert "clear.png: picture has no opaque pixel" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert command(tmp_path / "none", "-o", tmp_path / "out") == 2
    assert "holds no pictures" in capsys.readouterr().err
    assert main(["mesh", "a mug", "-o", str(tmp_path / "a.glb"), "--model", "none"]) == 2
    assert "is neither a folder with a pipeline.json nor a bundled preset" in capsys.readouterr().err
    assert not (tmp_path / "a.glb").exists()


def test_several_pictures_of_one_object_become_one_mesh(
    command: Command, folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
):
    side = np.asarray(Image.open(picture)).copy()
    side[:, :20, :3] = (20, 20, 200)
    Image.fromarray(side).save(picture.with_name("side.png"))
    output = picture.with_name("both.glb")
    both = (picture, picture.with_name("side.png"))
    made = []
    for options in (("--together",), ("--together", "--turns")):
        assert command(*both, "-o", output, "--steps", "2x2", "--overwrite", *options) == 0
        made.append(output.read_bytes())
    assert capsys.readouterr().out.count(f"{output}: ") == 2
    assert made[0] != made[1]
    model = MeshModel.load(str(folder), teacher=True)
    opened = [Image.open(path) for path in both]
    assert next(model.generate([opened], seeds=[0])).nfe == (9, 9)  # 2 pictures and nothing, 3 steps
    assert next(model.generate([opened], seeds=[0], how="turns")).nfe == (6, 6)
    same = next(model.generate([[opened[0]] * 2], seeds=[0])).mesh
    np.testing.assert_allclose(
        same.vertices, next(model.generate(opened[:1], seeds=[0])).mesh.vertices, atol=1e-4
    )


def test_gaussians_are_written_where_there_is_a_decoder_of_them(
    command: Command, folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
):
    assert command(picture, "-o", picture.with_name("out"), "--gaussians", "--count", 2) == 0
    files = sorted(picture.with_name("out").iterdir())
    assert [file.name for file in files] == ["disc-0.ply", "disc-1.ply"]
    header = files[0].read_bytes().split(b"end_header")[0].decode()
    told = capsys.readouterr().out
    count = re.search(r"element vertex (\d+)", header)
    assert count is not None
    assert f"{count[1]} Gaussians" in told
    assert "property float scale_2" in header
    written = json.loads((folder / "pipeline.json").read_text())
    del written["args"]["models"]["slat_decoder_gs"]
    other = picture.with_name("without")
    other.mkdir()
    (other / "pipeline.json").write_text(json.dumps(written))
    assert main(["mesh", str(picture), "-o", str(other / "a.ply"), "--gaussians", "--model", str(other)]) == 2
    assert "has no decoder of Gaussians (slat_decoder_gs)" in capsys.readouterr().err


def test_objects_are_cut_out_of_their_backgrounds_by_rembg(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    scene = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(scene).save(tmp_path / "photo.png")
    seen: list[tuple[int, int]] = []

    def remove(picture: Image.Image, session: object) -> Image.Image:
        seen.append(picture.size)
        alpha = Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), 10))
        picture.putalpha(alpha)
        return picture

    rembg = types.SimpleNamespace(new_session=lambda name: name, remove=remove)
    monkeypatch.setitem(sys.modules, "rembg", rembg)
    assert command(tmp_path / "photo.png", "-o", tmp_path / "a.glb", "--cut-out") == 0
    assert seen == [(40, 40)]
    monkeypatch.setitem(sys.modules, "rembg", None)
    assert command(tmp_path / "photo.png", "-o", tmp_path / "b.glb", "--cut-out") == 2
    assert "pip install 'fewstep[cut-out]'" in capsys.readouterr().err


def test_a_model_of_words_reads_them_itself(
    nano_mesh: types.ModuleType,
    clip_folder: Path,
    tmp_path: Path,
    picture: Path,
    capsys: pytest.CaptureFixture[str],
):
    model = str(nano_mesh.save_text(tmp_path / "text", "openai/clip-vit-large-patch14"))
    options = ["-o", str(tmp_path / "a.glb"), "--model", model]
    assert main(["mesh", "a b", *options]) == 2
    assert (
        "conditioned by openai/clip-vit-large-patch14, which is not in the folder" in capsys.readouterr().err
    )
    options += ["--text-encoder", str(clip_folder)]
    assert main(["mesh", "a b", *options]) == 0
    assert main(["mesh", str(picture), *options, "--overwrite"]) == 2
    assert "makes meshes of words; say what it should be" in capsys.readouterr().err
    assert main(["mesh", "a b " * 20, *options, "--overwrite"]) == 2
    assert "CLIP reads 12; shorten" in capsys.readouterr().err
    loaded = MeshModel.load(model, text_encoder=clip_folder)
    with pytest.raises(ValueError, match="this model takes words, not pictures"):
        next(loaded.generate([Image.new("RGB", (16, 16))], seeds=[0]))


def test_names_of_files_come_from_words() -> None:
    assert file_name("A blue mug, seen from above!") == "a-blue-mug-seen-from-above"
    assert file_name("…") == "mesh"


def test_the_page_is_served_until_ctrl_c(folder: Path, picture: Path):
    command = [sys.executable, "-P", "-m", "fewstep.apps.cli", "mesh", str(picture), "--model", str(folder)]
    command += ["-o", str(picture.with_name("a.glb")), "--view", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "faces" in process.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
    assert address is not None
    listed = httpx.get(address[0] + "v1/files").json()
    assert httpx.get(address[0].rstrip("/") + listed[0]["url"]).content[:4] == b"glTF"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
