"""Released folders, as they are and converted: found, named when something is missing, and streamed."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.released import recipes
from fewstep.modalities.video.released.conversion import convert, problems
from fewstep.modalities.video.released.folder import find_files, load_parts
from fewstep.modalities.video.released.hub import find_released
from fewstep.modalities.video.taehv import TAEHV
from fewstep.modalities.video.transformer import VideoTransformer

SIZE = (32, 48)
PROMPT = "a red fox runs"


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, transformer: VideoTransformer) -> Path:
    """As Self-Forcing released it."""
    path = tmp_path_factory.mktemp("student") / "self_forcing_dmd.pt"
    state = {f"model.{name}": value for name, value in transformer.state_dict().items()}
    torch.save({"generator": {k: v + 1 for k, v in state.items()}, "generator_ema": state}, path)
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, wan_folder: Path, student: Path) -> Path:
    out = tmp_path_factory.mktemp("converted") / "model"
    files = find_files(wan_folder, student=student)
    parts = load_parts(files, size=SIZE)
    convert(
        parts,
        recipes.recipe(files.recipe),
        out,
        source=str(student.name),
        prompts=[PROMPT],
        storage_dtype="float32",
    )
    return out


def frames_of(model: VideoModel, chunks: int) -> list[np.ndarray]:
    stream = model.stream(model.encode_prompt(PROMPT), seed=1)
    return [stream.step().frames for _ in range(chunks)]


def test_a_released_folder_streams_as_it_is_and_as_it_is_converted(
    tmp_path: Path, wan_folder: Path, student: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "HEIGHT", SIZE[0])
    monkeypatch.setattr(recipes, "WIDTH", SIZE[1])
    folder = shutil.copytree(wan_folder, tmp_path / "wan")
    shutil.copy(student, folder / "self_forcing_dmd.pt")
    released = VideoModel.load(folder, dtype=torch.float32)
    ours = VideoModel.load(converted, dtype=torch.float32)
    assert (ours.fps, ours.height, ours.width, ours.chunk_frames) == (16.0, *SIZE, 12)
    assert (ours.steps_available, ours.default_steps) == ((4,), 4)
    a, b = frames_of(released, 2), frames_of(ours, 2)
    assert [chunk.shape for chunk in a] == [(9, *SIZE, 3), (12, *SIZE, 3)]
    assert a[0].std() > 1.0
    # the prompt's features were stored in half precision
    assert max(np.abs(x.astype(int) - y).max() for x, y in zip(a, b, strict=True)) <= 1


def test_the_stored_prompts_need_no_text_encoder(tmp_path: Path, converted: Path) -> None:
    folder = shutil.copytree(converted, tmp_path / "model")
    shutil.rmtree(folder / "text_encoder")
    model = VideoModel.load(folder, dtype=torch.float32)
    assert model.encode_prompt(PROMPT).shape == (512, 32)
    assert model.encode_prompt(model.default_prompt).shape == (512, 32)


def test_any_other_prompt_goes_to_umt5(converted: Path) -> None:
    model = VideoModel.load(converted, dtype=torch.float32)
    a, b = model.encode_prompt("a blue bird"), model.encode_prompt("a red bird")
    assert a.shape == (512, 32)
    assert (a - b).abs().max() > 1e-3


def test_averaged_weights_are_the_default(wan_folder: Path, student: Path) -> None:
    found = [load_parts(find_files(wan_folder, student=student, ema=ema)).student for ema in (True, False)]
    a, b = (network.head.head.bias for network in found)
    torch.testing.assert_close(b - a, torch.ones_like(a))


def test_taehv_takes_the_place_of_the_autoencoder(
    tmp_path: Path, diffusers_folder: Path, student: Path, taehv: TAEHV
) -> None:
    torch.save(taehv.state_dict(), tmp_path / "taew2_1.pth")
    files = find_files(diffusers_folder, student=student, taehv=tmp_path / "taew2_1.pth")
    model = VideoModel(tmp_path, parts=load_parts(files, size=SIZE), dtype=torch.float32)
    assert isinstance(model.codec, TAEHV)
    assert [chunk.shape for chunk in frames_of(model, 2)] == [(9, *SIZE, 3), (12, *SIZE, 3)]


@pytest.mark.parametrize(
    ("folder", "name", "steps"),
    [
        ("autoregressive_checkpoint", "causvid", {"3"}),
        ("autoregressive_checkpoint_warp_4step_cfg2", "causvid-warped", {"4"}),
    ],
)
def test_a_file_that_says_nothing_is_known_by_the_folder_it_came_in(
    tmp_path: Path, wan_folder: Path, student: Path, folder: str, name: str, steps: set[str]
) -> None:
    """Every file of CausVid's is called model.pt."""
    (tmp_path / folder).mkdir()
    file = Path(shutil.copy(student, tmp_path / folder / "model.pt"))
    files = find_files(wan_folder, student=file)
    assert files.recipe == name
    assert load_parts(files).card["step_grids"].keys() == steps
    with pytest.raises(ValueError, match="does not say by its name how it generates"):
        find_files(wan_folder, student=Path(shutil.copy(student, tmp_path / "model.pt")))


def test_a_diffusers_folder_alone_is_a_student_when_it_is_said_to_be(diffusers_folder: Path) -> None:
    files = find_files(diffusers_folder, recipe_name="reward-forcing")
    assert files.transformer == diffusers_folder / "transformer"
    card = load_parts(files).card
    assert (card["width"], card["height"], card["cache"]["window"]) == (832, 480, 9)
    with pytest.raises(ValueError, match="does not say by its name how it generates; give the recipe"):
        find_files(diffusers_folder)


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("config.json", r"has no transformer \(a folder with config.json\); download it there"),
        ("Wan2.1_VAE.pth", r"has no autoencoder \(Wan2.1_VAE.pth, or diffusers' folder vae\)"),
        ("diffusion_pytorch_model.safetensors", "has no diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_missing_file_is_named_with_the_remedy(
    tmp_path: Path, wan_folder: Path, gone: str, named: str
) -> None:
    folder = shutil.copytree(wan_folder, tmp_path / "wan")
    (folder / gone).unlink()
    with pytest.raises(FileNotFoundError, match=named) as caught:
        load_parts(find_files(folder, recipe_name="self-forcing"))
    assert "\n" not in str(caught.value)


def test_several_students_are_listed(tmp_path: Path, wan_folder: Path) -> None:
    folder = shutil.copytree(wan_folder, tmp_path / "wan")
    for name in ("longlive_base.pt", "rewardforcing.pt"):
        (folder / name).touch()
    with pytest.raises(ValueError, match=r"several students \(longlive_base.pt, rewardforcing.pt\)"):
        find_files(folder)


def test_longlives_adapters_are_found_beside_it_and_missed_where_they_are_not(
    tmp_path: Path, wan_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(wan_folder, tmp_path / "wan")
    (folder / "longlive_base.pt").touch()
    assert find_files(folder).lora is None
    assert "give Efficient-Large-Model/LongLive-1.3B/models/lora.pt" in caplog.text
    caplog.clear()
    (folder / "lora.pt").touch()
    files = find_files(folder)
    assert (files.transformer, files.lora) == (folder / "longlive_base.pt", folder / "lora.pt")
    (folder / "longlive_base.pt").rename(folder / "rewardforcing.pt")
    assert find_files(folder).lora is None
    assert not caplog.text


def test_a_conversion_without_text_encoder_is_refused_before_anything_is_written(
    tmp_path: Path, wan_folder: Path, student: Path
) -> None:
    folder = shutil.copytree(wan_folder, tmp_path / "wan")
    (folder / "models_t5_umt5-xxl-enc-bf16.pth").unlink()
    parts = load_parts(find_files(folder, student=student))
    with pytest.raises(ValueError, match="no text encoder; put text_encoder and tokenizer"):
        convert(parts, recipes.recipe("self-forcing"), tmp_path / "out", source="x")
    assert not (tmp_path / "out").exists()


def test_a_conversion_into_a_file_or_of_an_empty_prompt_is_refused_before_anything_is_written(
    tmp_path: Path, wan_folder: Path, student: Path
) -> None:
    parts, recipe = load_parts(find_files(wan_folder, student=student)), recipes.recipe("self-forcing")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; choose a folder"):
        convert(parts, recipe, tmp_path / "file", source="x")
    with pytest.raises(ValueError, match="prompt is empty"):
        convert(parts, recipe, tmp_path / "out", source="x", prompts=[" "])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["student", "codec"])
def test_weights_that_are_not_finite_are_named_before_anything_is_written(
    tmp_path: Path, wan_folder: Path, student: Path, part: str
) -> None:
    parts, recipe = load_parts(find_files(wan_folder, student=student)), recipes.recipe("self-forcing")
    name, weight = next(iter(getattr(parts, part).named_parameters()))
    weight.data.view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=rf"{re.escape(name)} of the .* holds numbers that are not finite"):
        convert(parts, recipe, tmp_path / "out", source="x")
    assert not (tmp_path / "out").exists()


def test_a_text_encoder_without_its_tokenizer_is_named(tmp_path: Path, converted: Path) -> None:
    folder = shutil.copytree(converted, tmp_path / "model")
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(FileNotFoundError, match="has no tokenizer for its text_encoder; copy it there"):
        VideoModel.load(folder)


def test_an_interrupted_conversion_is_no_model(
    tmp_path: Path, wan_folder: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("fewstep.modalities.video.released.conversion.save_codec", fail)
    parts = load_parts(find_files(wan_folder, student=student), size=SIZE)
    with pytest.raises(OSError, match="disk full"):
        convert(parts, recipes.recipe("self-forcing"), tmp_path / "out", source="x")
    with pytest.raises(ValueError, match="no video model"):
        VideoModel.load(tmp_path / "out")


def test_a_whole_folder_is_told_from_a_changed_one(tmp_path: Path, converted: Path) -> None:
    folder = shutil.copytree(converted, tmp_path / "model")
    assert problems(folder) == []
    (folder / "student" / "card.json").write_text("{}")
    (folder / "text_encoder" / "config.json").unlink()
    (folder / "notes.txt").write_text("mine")
    assert problems(folder) == [
        "text_encoder/config.json is missing; convert the model again",
        "notes.txt is not of this model; remove it",
        "student/card.json differs from what was converted; convert the model again",
    ]


def test_the_card_says_where_the_student_came_from(converted: Path) -> None:
    card: dict[str, Any] = json.loads((converted / "student" / "card.json").read_text())
    assert card["training"] == {"source": "self_forcing_dmd.pt", "paper": "Self Forcing, arXiv 2506.08009"}
    assert card["step_grids"]["4"] == pytest.approx([1.0, 0.9375, 5 / 6, 0.625])
    assert card["guidance"] == {"scale": 1.0, "baked": True}


@pytest.mark.parametrize("source", ["nowhere", "./gone/x", "/gone", "a//b"])
def test_what_is_neither_on_disk_nor_an_id_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="is neither on disk nor a hub id"):
        find_released(source)


@pytest.mark.parametrize("source", ["nobody/nothing", "nobody/nothing/checkpoints/x.pt"])
def test_a_hub_id_that_is_not_cached_says_so_without_a_network(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match="not in the hub's cache"):
        find_released(source, local_files_only=True)


def test_a_path_is_found_where_it_is(wan_folder: Path) -> None:
    assert find_released(wan_folder) == wan_folder
    assert find_released(str(wan_folder / "config.json")) == wan_folder / "config.json"
