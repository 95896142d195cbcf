"""Layers in eight bits: which ones, how far from the original, and what is said where it cannot be."""

import copy
import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fewstep.modalities.video.acceleration import PLAIN, SWITCHES, Quantization, why_not_quantized
from fewstep.modalities.video.fidelity import fidelity
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.quantization import quantize
from fewstep.modalities.video.transformer import VideoTransformer

MakeModel = Callable[..., VideoModel]
MakeNetwork = Callable[..., VideoTransformer]
needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)
# of normal weights: a step of 8 bits spans 2 * 3 sigma / 255, e4m3 has 3 bits of mantissa
ERRORS: dict[Quantization, tuple[float, float]] = {
    "int8_weights": (1e-4, 0.02),
    "int8": (1e-3, 0.04),
    "fp8_weights": (3e-3, 0.08),
}


def words() -> torch.Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


@needs_torchao
@pytest.mark.parametrize("mode", ERRORS)
def test_velocities_and_frames_are_off_by_what_eight_bits_cost(
    make_model: MakeModel, mode: Quantization
) -> None:
    plain = make_model()
    found = fidelity(plain, plain.with_acceleration(SWITCHES[mode]), words(), chunks=5)
    least, most = ERRORS[mode]
    assert least < found.velocity_error < most
    assert found.first_psnr > 25.0
    assert found.levels > 0


@needs_torchao
def test_layers_within_blocks_are_replaced_and_nothing_else(make_network: MakeNetwork) -> None:
    network = make_network(dtype=torch.float32)
    network.fuse_projections()
    before = copy.deepcopy(network)
    quantize(network, "int8_weights")
    changed = {
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and type(module.weight.data) is not torch.Tensor
    }
    products = {f"{part}.{layer}" for part in ("self_attn", "cross_attn") for layer in "qkvo"}
    products |= {"ffn.0", "ffn.2"}
    assert changed == {f"blocks.{block}.{product}" for block in range(2) for product in products}
    kept = {name: value for name, value in network.named_parameters() if "blocks" not in name}
    for name, value in kept.items():
        assert torch.equal(value, before.get_parameter(name)), name


@needs_torchao
def test_layers_of_odd_sizes_stay(make_network: MakeNetwork) -> None:
    network = make_network(dtype=torch.float32, dim=24, num_heads=2, ffn_dim=40)
    quantize(network, "int8")
    assert all(type(parameter.data) is torch.Tensor for parameter in network.parameters())


@needs_torchao
def test_a_quantised_model_is_not_quantised_again(make_model: MakeModel) -> None:
    model = make_model(SWITCHES["int8"])
    with pytest.raises(ValueError, match=r"already quantised \(int8\); load the model anew"):
        model.with_acceleration(PLAIN)


def test_a_missing_library_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert why_not_quantized("int8", "cpu") == (
        "quantization='int8' needs torchao: pip install 'fewstep[quantize]'"
    )
    assert why_not_quantized("none", "cpu") is None
