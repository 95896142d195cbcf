"""Folders, the hub's cache, and what is refused."""

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.modalities.image.pretrained import ARCHITECTURES, load_teacher

UNET_WEIGHTS = Path("unet/diffusion_pytorch_model.safetensors")
COMMIT = "0" * 40
X_T, T = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.7])


@pytest.fixture
def folder_copy(folder_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """Stable Diffusion's, to be damaged."""
    return Path(shutil.copytree(folder_of("sd15"), tmp_path / "sd15"))


@pytest.fixture
def cache(folder_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A cache of the hub's client that holds ``tiny/sd15``."""
    model = tmp_path / "cache" / "models--tiny--sd15"
    shutil.copytree(folder_of("sd15"), model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return model.parent


def test_a_hub_id_is_found_in_the_cache(cache: Path, teacher_of: Callable[[str], Any]) -> None:
    teacher, expected = load_teacher("tiny/sd15", cache_dir=cache, local_files_only=True), teacher_of("sd15")
    torch.testing.assert_close(
        teacher(X_T, T, teacher.encode_prompt(["mug"])), expected(X_T, T, expected.encode_prompt(["mug"]))
    )


@pytest.mark.parametrize("local_files_only", [True, False])
def test_a_hub_id_that_is_not_cached_needs_the_network(
    local_files_only: bool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="'tiny/other' is no local folder, is not in the hub's cache"):
        load_teacher("tiny/other", cache_dir=cache, local_files_only=local_files_only)


@pytest.mark.parametrize("source", ["nowhere", "./no/where", "/no/where", "~/nowhere", Path("no/where")])
def test_what_is_neither_a_folder_nor_a_hub_id_is_named(source: str | Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere|no/where.*neither a folder nor a hub id"):
        load_teacher(source)


def test_a_folder_without_an_index_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no diffusers folder: it has no model_index.json"):
        load_teacher(tmp_path)


def test_a_damaged_index_is_named(folder_copy: Path) -> None:
    (folder_copy / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index.json is not JSON"):
        load_teacher(folder_copy)


def test_an_unsupported_pipeline_is_told_the_supported_ones(folder_copy: Path) -> None:
    (folder_copy / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    with pytest.raises(ValueError, match="holds a KandinskyPipeline; supported are") as caught:
        load_teacher(folder_copy)
    assert all(name in str(caught.value) for name in ARCHITECTURES)


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler", "tokenizer", "text_encoder"])
def test_a_missing_sub_folder_is_named(part: str, folder_copy: Path) -> None:
    shutil.rmtree(folder_copy / part)
    with pytest.raises(ValueError, match=f"lacks the sub-folder {part} that its model_index.json lists"):
        load_teacher(folder_copy)


def test_an_index_without_a_needed_component_is_named(folder_copy: Path) -> None:
    index = json.loads((folder_copy / "model_index.json").read_text())
    index["text_encoder"] = [None, None]
    (folder_copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lists no text_encoder; StableDiffusionPipeline needs it"):
        load_teacher(folder_copy)
    assert load_teacher(folder_copy, text_encoders=False).text is None


def test_a_sub_folder_without_its_configuration_is_named(folder_copy: Path) -> None:
    (folder_copy / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"vae has no config.json"):
        load_teacher(folder_copy)


def test_a_sub_folder_without_weights_is_named(folder_copy: Path) -> None:
    (folder_copy / UNET_WEIGHTS).unlink()
    with pytest.raises(ValueError, match="unet has no weights that can be read"):
        load_teacher(folder_copy)


def test_missing_and_unknown_weights_are_named(folder_copy: Path) -> None:
    weights = load_file(folder_copy / UNET_WEIGHTS)
    weights["conv_elsewhere.bias"] = weights.pop("conv_in.bias")
    save_file(weights, folder_copy / UNET_WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: conv_in.bias; unexpected: conv_elsewhere.bias"):
        load_teacher(folder_copy)


def test_a_folder_without_the_students_network_is_named(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="has no sub-folder unet; give the folder of save_student"):
        load_teacher(folder_of("sd15"), network=tmp_path)


def test_networks_for_inpainting_and_guidance_distilled_ones_are_refused(
    folder_copy: Path, tiny_pipelines: ModuleType
) -> None:
    text = tiny_pipelines.WIDTH
    tiny_pipelines.unet(cross_attention_dim=text, in_channels=9).save_pretrained(folder_copy / "unet")
    with pytest.raises(ValueError, match="the unet takes 9 channels, the autoencoder has 4"):
        load_teacher(folder_copy, text_encoders=False)
    tiny_pipelines.unet(cross_attention_dim=text, time_cond_proj_dim=8).save_pretrained(folder_copy / "unet")
    with pytest.raises(ValueError, match="the unet takes an embedding of w: it is a distilled student"):
        load_teacher(folder_copy, text_encoders=False)


def test_without_text_encoders_conditions_come_from_elsewhere(
    folder_of: Callable[[str], Path], teacher_of: Callable[[str], Any]
) -> None:
    whole, bare = teacher_of("sd15"), load_teacher(folder_of("sd15"), text_encoders=False)
    condition = whole.encode_prompt(["mug"])
    torch.testing.assert_close(bare(X_T, T, condition), whole(X_T, T, condition), rtol=0, atol=0)
    with pytest.raises(ValueError, match="text_encoders=False left the text encoders out"):
        bare.encode_prompt(["mug"])
    with pytest.raises(ValueError, match="text_encoders=False left the text encoders out"):
        bare.guided(2.0)


def test_variant_weights_are_found_where_there_are_any(
    folder_copy: Path, teacher_of: Callable[[str], Any]
) -> None:
    weights = load_file(folder_copy / UNET_WEIGHTS)
    scaled = {name: value * 1.5 for name, value in weights.items()}
    name = "diffusion_pytorch_model.fp16.safetensors"
    save_file(scaled, folder_copy / "unet" / name, metadata={"format": "pt"})
    teacher = load_teacher(folder_copy, variant="fp16")
    for key, value in teacher.network.state_dict().items():
        torch.testing.assert_close(value, scaled[key], rtol=0, atol=0)
    original = teacher_of("sd15").codec.vae.state_dict()
    for key, value in teacher.codec.vae.state_dict().items():
        torch.testing.assert_close(value, original[key], rtol=0, atol=0)


def test_an_autoencoder_that_overflows_in_half_precision_stays_in_full(
    folder_of: Callable[[str], Path],
) -> None:
    teacher = load_teacher(folder_of("sdxl"), dtype=torch.float16, text_encoders=False)
    assert teacher.codec.vae.config.force_upcast
    assert teacher.codec.vae.dtype == torch.float32
    assert teacher.network.dtype == torch.float16


def test_progress_bars_are_as_before(
    folder_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()  # other tests may have switched them off
    folder = folder_of("sd3")
    capsys.readouterr()  # diffusers' own bars while it writes the folder
    load_teacher(folder)
    assert logging.is_progress_bar_enabled() == before
    assert "%|" not in capsys.readouterr().err


@pytest.mark.parametrize("found", [None, "0.39.1"])
def test_a_missing_or_old_diffusers_is_named(found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr("fewstep.modalities.image.pretrained.loading.version", version)
    with pytest.raises(ImportError, match=r"pip install 'fewstep\[image\]'"):
        load_teacher("anything")
