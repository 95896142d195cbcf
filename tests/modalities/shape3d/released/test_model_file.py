import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fewstep.modalities.shape3d.networks.latent_flow import LatentFlow, LatentFlowConfig
from fewstep.modalities.shape3d.released.model_file import (
    KINDS,
    build,
    load_model_file,
    load_trainer_checkpoint,
    save_model_file,
)

Make = Callable[..., nn.Module]


@pytest.fixture
def saved(tmp_path: Path, nano_network: Make) -> Path:
    path = tmp_path / "ckpts" / "flow_nano_fp32"
    save_model_file(nano_network("SparseStructureFlowModel"), path)
    return path


def edit(path: Path, **changes: object) -> None:
    file = path.with_name(path.name + ".json")
    record = json.loads(file.read_text())
    for key, value in changes.items():
        record["args"].pop(key) if value is None else record["args"].update({key: value})
    file.write_text(json.dumps(record))


def weights(path: Path) -> Path:
    return path.with_name(path.name + ".safetensors")


TRELLIS_KINDS = [kind for kind in KINDS if kind != "ImageEncoder"]


@pytest.mark.parametrize("kind", TRELLIS_KINDS)
@pytest.mark.parametrize("use_fp16", [False, True])
def test_a_network_comes_back_bit_for_bit(
    tmp_path: Path, nano_network: Make, kind: str, use_fp16: bool
) -> None:
    network = nano_network(kind, use_fp16=use_fp16)
    save_model_file(network, tmp_path / "one")
    again = load_model_file(tmp_path / "one")
    assert again.config == network.config
    expected = network.state_dict()
    assert list(again.state_dict()) == list(expected)
    for name, value in again.state_dict().items():
        assert value.dtype == torch.float32  # on a CPU
        assert torch.equal(value, expected[name].float())
    save_model_file(again, tmp_path / "two")
    assert weights(tmp_path / "two").read_bytes() == weights(tmp_path / "one").read_bytes()
    assert load_file(weights(tmp_path / "one")).keys() == expected.keys()
    assert {k: v.dtype for k, v in load_file(weights(tmp_path / "one")).items()} == {
        k: v.dtype for k, v in expected.items()
    }


def test_a_file_of_the_hub_is_understood(tmp_path: Path) -> None:
    arguments = {
        "resolution": 8,
        "in_channels": 8,
        "out_channels": 8,
        "model_channels": 24,
        "cond_channels": 6,
        "num_blocks": 1,
        "num_heads": 2,
        "mlp_ratio": 4,
        "patch_size": 2,
        "num_io_res_blocks": 2,
        "io_block_channels": [8],
        "pe_mode": "ape",
        "qk_rms_norm": True,
        "use_fp16": True,
    }
    network = build("SLatFlowModel", arguments, "file")
    assert isinstance(network, LatentFlow)
    config = LatentFlowConfig(
        resolution=8,
        model_channels=24,
        cond_channels=6,
        num_blocks=1,
        num_heads=2,
        io_block_channels=(8,),
        use_fp16=True,
    )
    assert network.config == config
    elastic = build("ElasticSLatFlowModel", arguments | {"use_checkpoint": True}, "file")
    assert elastic.state_dict().keys() == network.state_dict().keys()


def test_arguments_that_are_left_out_are_those_of_the_original_constructors() -> None:
    required = {
        "resolution": 8,
        "in_channels": 8,
        "out_channels": 8,
        "model_channels": 128,
        "cond_channels": 6,
    }
    network = build("SparseStructureFlowModel", required | {"num_blocks": 1}, "file")
    config: Any = network.config
    assert (config.num_heads, config.num_head_channels, config.patch_size) == (None, 64, 2)
    assert (config.qk_rms_norm, config.share_mod) == (False, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_blocks": None}, r"missing: \['num_blocks'\]"),
        ({"window": 3}, r"unknown: \['window'\]"),
        ({"pe_mode": "rope"}, "pe_mode='rope' is not supported"),
        ({"num_blocks": 2}, "missing: blocks.1"),
        ({"cond_channels": 7}, r"reshaped: blocks.0.cross_attn.to_kv.weight \[48, 6\] instead of \[48, 7\]"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_it(
    saved: Path, change: dict[str, object], message: str
) -> None:
    edit(saved, **change)
    with pytest.raises(ValueError, match=message) as error:
        load_model_file(saved)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("extra", [True, False])
def test_a_missing_or_extra_weight_is_named(saved: Path, extra: bool) -> None:
    state = load_file(weights(saved))
    if extra:
        state["blocks.0.more"] = torch.zeros(1)
    else:
        del state["out_layer.bias"]
    save_file(state, weights(saved))
    with pytest.raises(ValueError, match="unexpected: blocks.0.more" if extra else "missing: out_layer.bias"):
        load_model_file(saved)


def test_an_unknown_class_lists_those_that_are_known(saved: Path) -> None:
    with pytest.raises(ValueError, match="class 'SLatVoxelDecoder' is not supported; supported are Sparse"):
        build("SLatVoxelDecoder", {}, "file")


def test_a_missing_file_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"other\.json is missing"):
        load_model_file(tmp_path / "other")
    weights(saved).unlink()
    with pytest.raises(FileNotFoundError, match=r"flow_nano_fp32\.safetensors is missing"):
        load_model_file(saved)


def test_what_the_format_cannot_say_is_not_written(tmp_path: Path) -> None:
    config = LatentFlowConfig(
        resolution=8, model_channels=24, cond_channels=6, num_blocks=1, num_heads=2, pool_include_self=False
    )
    with pytest.raises(ValueError, match="pool_include_self=False cannot be written"):
        save_model_file(LatentFlow(config), tmp_path / "flow")
    with pytest.raises(ValueError, match="network is a Linear, for which the format has no class"):
        save_model_file(nn.Linear(2, 2), tmp_path / "layer")


@pytest.mark.parametrize("ema_rate", [None, 0.9999])
def test_a_trainers_checkpoint_loads(tmp_path: Path, nano_network: Make, ema_rate: float | None) -> None:
    network = nano_network("SparseStructureFlowModel")
    save_model_file(network, tmp_path / "made")
    record = json.loads((tmp_path / "made.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"models": {"denoiser": record}, "trainer": {}}))
    (tmp_path / "ckpts").mkdir()
    average = "" if ema_rate is None else "_ema0.9999"
    torch.save(network.state_dict(), tmp_path / "ckpts" / f"denoiser{average}_step0000300.pt")
    loaded = load_trainer_checkpoint(tmp_path, "denoiser", step=300, ema_rate=ema_rate)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])
    with pytest.raises(FileNotFoundError, match=r"step0000200\.pt is missing; the folder has denoiser"):
        load_trainer_checkpoint(tmp_path, "denoiser", step=200, ema_rate=ema_rate)
    with pytest.raises(ValueError, match="name='decoder' is no model"):
        load_trainer_checkpoint(tmp_path, "decoder", step=300)
    (tmp_path / "ckpts" / f"denoiser{average}_step0000300.pt").write_bytes(b"\xd3 no pickle at all")
    with pytest.raises(ValueError, match=r"is damaged, and is not unpickled|is not a whole file") as error:
        load_trainer_checkpoint(tmp_path, "denoiser", step=300, ema_rate=ema_rate)
    assert "\n" not in str(error.value)


def test_arguments_must_be_an_object(saved: Path) -> None:
    saved.with_name(saved.name + ".json").write_text('{"name": "SLatMeshDecoder", "args": []}')
    with pytest.raises(ValueError, match="must hold `name` and an object `args`"):
        load_model_file(saved)
