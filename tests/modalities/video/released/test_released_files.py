"""Whole files of the transformer and of the decoders, in every layout, strictly."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fewstep.modalities.video.released.codec_file import load_taehv, load_wan_vae, vae_config
from fewstep.modalities.video.released.transformer_file import (
    config_of,
    load_transformer_file,
    merged_lora,
    read_sizes,
)
from fewstep.modalities.video.taehv import TAEHV
from fewstep.modalities.video.transformer import VideoTransformer
from fewstep.modalities.video.wan_vae import WanVAE

Same = Callable[[nn.Module, nn.Module], None]


@pytest.mark.parametrize("layout", ["wan", "diffusers"])
def test_a_folder_in_either_layout_is_the_network(
    layout: str,
    wan_folder: Path,
    diffusers_folder: Path,
    transformer: VideoTransformer,
    assert_same_state: Same,
) -> None:
    folder = {"wan": wan_folder, "diffusers": diffusers_folder / "transformer"}[layout]
    found = load_transformer_file(folder)
    assert found.config == transformer.config
    assert not found.training
    assert_same_state(found, transformer)


@pytest.mark.parametrize("prefix", ["", "model.", "_fsdp_wrapped_module.model."])
@pytest.mark.parametrize("container", [None, "generator", "generator_ema"])
def test_a_students_file_is_the_network_whatever_is_around_it(
    tmp_path: Path,
    wan_folder: Path,
    transformer: VideoTransformer,
    assert_same_state: Same,
    prefix: str,
    container: str | None,
) -> None:
    state = {prefix + name: value for name, value in transformer.state_dict().items()}
    path = tmp_path / "student.pt"
    torch.save(state if container is None else {container: state, "critic": {"x": torch.ones(1)}}, path)
    assert_same_state(load_transformer_file(path, config_folder=wan_folder), transformer)


def test_the_files_dtype_is_kept_unless_another_is_asked_for(
    tmp_path: Path, wan_folder: Path, transformer: VideoTransformer
) -> None:
    path = tmp_path / "student.safetensors"
    save_file({name: value.bfloat16() for name, value in transformer.state_dict().items()}, path)
    assert load_transformer_file(path, config_folder=wan_folder).dtype == torch.bfloat16
    wide = load_transformer_file(path, config_folder=wan_folder, dtype=torch.float32)
    assert wide.dtype == torch.float32


def changed_state(transformer: VideoTransformer, change: str) -> dict[str, Any]:
    state = dict(transformer.state_dict())
    if change == "missing":
        del state["blocks.1.norm3.bias"]
    elif change == "unexpected":
        state["blocks.1.norm9.bias"] = torch.zeros(1)
    elif change == "reshaped":
        state["head.head.bias"] = torch.zeros(3)
    elif change == "image":
        state["blocks.0.cross_attn.k_img.weight"] = torch.zeros(1)
    else:
        del state["patch_embedding.weight"]
    return state


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("missing", r"missing: blocks.1.norm3.bias"),
        ("unexpected", r"unexpected: blocks.1.norm9.bias"),
        ("reshaped", r"reshaped: head.head.bias \[3\] instead of \[64\]"),
        ("image", r"takes pictures .*k_img.*use a text-to-video one"),
        ("foreign", r"no transformer of Wan: 'patch_embedding.weight' is missing"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, wan_folder: Path, transformer: VideoTransformer, change: str, named: str
) -> None:
    path = tmp_path / "student.pt"
    torch.save(changed_state(transformer, change), path)
    with pytest.raises(ValueError, match=named):
        load_transformer_file(path, config_folder=wan_folder)


def test_sizes_that_the_weights_contradict_are_named(tmp_path: Path, transformer: VideoTransformer) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"ffn_dim": 8960, "num_heads": 2}))
    with pytest.raises(ValueError, match=r"does not belong to its config.json; .*\(8960, 48\)"):
        config_of(transformer.state_dict(), read_sizes(tmp_path), "student.pt")


def test_heads_of_128_are_the_default_and_smaller_networks_need_their_configuration(
    transformer: VideoTransformer,
) -> None:
    with torch.device("meta"):
        large = VideoTransformer(type(transformer.config)(num_layers=1))
    assert config_of(large.state_dict(), {}, "f").num_heads == 12
    with pytest.raises(ValueError, match=r"dim=24 is no multiple of 128; put its config.json beside it"):
        config_of(transformer.state_dict(), {}, "f")


@pytest.mark.parametrize("adapter", ["", "default."])  # in a file that peft saved, and in a network's state
def test_adapters_are_merged_as_peft_adds_them(transformer: VideoTransformer, adapter: str) -> None:
    name = "blocks.0.self_attn.q"
    a, b = torch.randn(3, 24), torch.randn(24, 3)
    keys = [f"base_model.model.{name}.lora_{half}.{adapter}weight" for half in "AB"]
    lora = dict(zip(keys, (a, b), strict=True))
    layer, x = transformer.get_submodule(name), torch.randn(5, 24)
    merged = merged_lora(transformer.state_dict(), lora, "f", scale=0.5)
    with torch.no_grad():
        expected = layer(x) + 0.5 * (x @ a.T) @ b.T
    found = x @ merged[f"{name}.weight"].T + merged[f"{name}.bias"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # float32, sums of 24
    changed = [key for key, value in transformer.state_dict().items() if not torch.equal(value, merged[key])]
    assert changed == [f"{name}.weight"]


@pytest.mark.parametrize("container", [None, "generator_lora"])
def test_longlives_file_of_adapters_is_the_students_and_not_the_critics(
    tmp_path: Path, wan_folder: Path, transformer: VideoTransformer, container: str | None
) -> None:
    name = "blocks.1.ffn.0"
    a, b = torch.randn(3, 24), torch.randn(48, 3)
    lora = {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    critic = {key: torch.full_like(value, 9.0) for key, value in lora.items()}
    student, path = tmp_path / "longlive_base.pt", tmp_path / "lora.pt"
    torch.save({"generator": transformer.state_dict()}, student)
    torch.save(lora if container is None else {container: lora, "critic_lora": critic, "step": 3000}, path)
    found = load_transformer_file(student, config_folder=wan_folder, lora=path)
    expected = transformer.get_submodule(name).get_parameter("weight") + b @ a
    torch.testing.assert_close(found.get_submodule(name).get_parameter("weight"), expected)


@pytest.mark.parametrize(
    "names",
    [
        ["blocks.0.self_attn.q.lora_A.weight"],
        ["blocks.0.self_attn.q.lora_A.default.weight"],
        ["blocks.0.self_attn.q.lora_A.critic.weight", "blocks.0.self_attn.q.lora_B.critic.weight"],
        ["x.lora_A.weight", "x.lora_B.weight"],
        ["blocks.0.alpha"],
        [],
    ],
)
def test_adapters_of_another_network_are_refused(transformer: VideoTransformer, names: list[str]) -> None:
    with pytest.raises(ValueError, match="does not fit as adapters"):
        merged_lora(transformer.state_dict(), dict.fromkeys(names, torch.ones(1, 1)), "lora.pt", scale=1.0)


def test_adapters_of_one_layer_under_two_names_are_refused(transformer: VideoTransformer) -> None:
    layer = "blocks.0.self_attn.q"
    names = [f"{layer}.lora_{half}.{adapter}weight" for half in "AB" for adapter in ("", "default.")]
    with pytest.raises(ValueError, match=r"lora\.pt holds adapters of one layer twice"):
        merged_lora(transformer.state_dict(), dict.fromkeys(names, torch.ones(1, 1)), "lora.pt", scale=1.0)


@pytest.mark.parametrize("layout", ["wan", "diffusers"])
def test_the_autoencoder_in_either_layout_is_the_network(
    layout: str, wan_folder: Path, diffusers_folder: Path, vae: WanVAE, assert_same_state: Same
) -> None:
    path = {"wan": wan_folder / "Wan2.1_VAE.pth", "diffusers": diffusers_folder / "vae"}[layout]
    found = load_wan_vae(path)
    assert found.config.width == 4
    # blocks per resolution are Wan's where no configuration says otherwise
    assert_same_state(found, vae)


def test_another_autoencoder_is_named() -> None:
    with pytest.raises(ValueError, match=r"'is_residual': True.* is not Wan 2.1's autoencoder"):
        vae_config({"is_residual": True}, "f")


def test_taehv_is_the_network(tmp_path: Path, taehv: TAEHV, assert_same_state: Same) -> None:
    torch.save(taehv.state_dict(), tmp_path / "taew2_1.pth")
    assert_same_state(load_taehv(tmp_path / "taew2_1.pth"), taehv)


def test_rows_of_earlier_frames_are_dropped_where_a_layer_no_longer_grows(
    tmp_path: Path, taehv: TAEHV, assert_same_state: Same
) -> None:
    state = dict(taehv.state_dict())
    kept = state["decoder.7.conv.weight"]
    state["decoder.7.conv.weight"] = torch.cat([torch.zeros_like(kept), kept])
    torch.save(state, tmp_path / "taew2_1.pth")
    assert_same_state(load_taehv(tmp_path / "taew2_1.pth"), taehv)


def test_weights_that_are_missing_or_left_over_are_named(tmp_path: Path, taehv: TAEHV, vae: WanVAE) -> None:
    state = dict(taehv.state_dict()) | {"decoder.99.weight": torch.ones(1)}
    del state["encoder.17.bias"]
    torch.save(state, tmp_path / "t.pth")
    with pytest.raises(ValueError, match=r"missing: encoder.17.bias; unexpected: decoder.99.weight"):
        load_taehv(tmp_path / "t.pth")
    torch.save({**vae.state_dict(), "x.weight": torch.ones(1)}, tmp_path / "v.pth")
    with pytest.raises(ValueError, match=r"unexpected: x.weight"):
        load_wan_vae(tmp_path / "v.pth")
    with pytest.raises(ValueError, match="is not TAEHV's file"):
        load_taehv(tmp_path / "v.pth")


def test_a_folder_without_weights_says_what_to_copy(tmp_path: Path, wan_folder: Path) -> None:
    shutil.copy(wan_folder / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no diffusion_pytorch_model.safetensors"):
        load_transformer_file(tmp_path)
