"""Our convolutions through spconv's kernels; most of it is skipped where spconv is not installed."""

import sys

import pytest
import torch

from fewstep.modalities.shape3d.sparse import spconv_kernels
from fewstep.modalities.shape3d.sparse.convolution import SubmanifoldConv3d
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor

RESOLUTION = 12
ROUNDING = 1e-5  # float32 sums of 27 * 8 terms of size 1
NEEDS_SPCONV = "spconv is used only where it is installed"


@pytest.fixture
def x() -> SparseTensor:
    coords = (torch.rand(2, RESOLUTION, RESOLUTION, RESOLUTION) < 0.2).nonzero()
    return SparseTensor.of(torch.randn(len(coords), 8), coords, batch_size=2, resolution=RESOLUTION)


def test_a_cpu_keeps_to_the_table_of_neighbours(x: SparseTensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spconv_kernels, "reason_against", lambda device: None)
    assert not spconv_kernels.takes(x.feats)


def test_what_spconv_takes_is_handed_to_it_with_the_bias_left_to_us(
    x: SparseTensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = SubmanifoldConv3d(8, 4)
    torch.nn.init.normal_(conv.conv.bias)
    monkeypatch.setattr(spconv_kernels, "takes", lambda feats: True)
    monkeypatch.setattr(
        spconv_kernels, "by_spconv", lambda kernel, given: given.feats @ kernel.weight[:, 1, 1, 1].T
    )
    expected = x.feats @ conv.conv.weight[:, 1, 1, 1].T + conv.conv.bias
    torch.testing.assert_close(conv(x).feats, expected)


def test_without_spconv_the_reason_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spconv_kernels, "_reasons", {})
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    monkeypatch.setitem(sys.modules, "spconv", None)
    reason = spconv_kernels.reason_against("cpu")
    assert reason is not None
    assert "spconv" in reason
    assert "\n" not in reason


@pytest.mark.parametrize("trained", [False, True])
def test_the_forward_pass_of_spconv_is_ours(x: SparseTensor, trained: bool) -> None:
    pytest.importorskip("spconv.pytorch", reason=NEEDS_SPCONV)
    first, second = SubmanifoldConv3d(8, 8), SubmanifoldConv3d(8, 4)
    with torch.set_grad_enabled(trained):
        expected = second(first(x)).feats
        between = x.replace(spconv_kernels.by_spconv(first.conv, x) + first.conv.bias)
        found = spconv_kernels.by_spconv(second.conv, between) + second.conv.bias
    torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=ROUNDING)


def test_weights_that_are_replaced_are_seen(x: SparseTensor) -> None:
    pytest.importorskip("spconv.pytorch", reason=NEEDS_SPCONV)
    conv, other = SubmanifoldConv3d(8, 4), SubmanifoldConv3d(8, 4)
    spconv_kernels.by_spconv(conv.conv, x)
    conv.load_state_dict(other.state_dict(), assign=True)
    found = spconv_kernels.by_spconv(conv.conv, x) + conv.conv.bias
    torch.testing.assert_close(found, other(x).feats, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", spconv_kernels.DTYPES)
def test_on_a_gpu_both_passes_agree_with_the_table(x: SparseTensor, dtype: torch.dtype) -> None:
    pytest.importorskip("spconv.pytorch", reason=NEEDS_SPCONV)
    close = {torch.float32: 1e-3, torch.float16: 2e-2}[dtype]  # tensor cores round float32 products
    conv = SubmanifoldConv3d(8, 16)
    gradients, outputs = [], []
    for device, kind in (("cpu", torch.float32), ("cuda", dtype)):
        layer = SubmanifoldConv3d(8, 16).to(device, kind)
        layer.load_state_dict(conv.state_dict())
        feats = x.feats.to(device, kind).requires_grad_()
        given = SparseTensor.of(feats, x.coords.to(device), batch_size=2, resolution=RESOLUTION)
        assert spconv_kernels.takes(feats) == (device == "cuda")
        out = layer(given).feats
        out.square().sum().backward()
        assert feats.grad is not None
        outputs.append(out.detach().float().cpu())
        gradients.append((feats.grad.float().cpu(), layer.conv.weight.grad))
    torch.testing.assert_close(outputs[1], outputs[0], atol=close, rtol=close)
    torch.testing.assert_close(gradients[1][0], gradients[0][0], atol=10 * close, rtol=10 * close)
    assert gradients[0][1] is not None
    assert gradients[1][1] is not None
    weights = [gradient[1].float().cpu() for gradient in gradients if gradient[1] is not None]
    relative = (weights[1] - weights[0]).norm() / weights[0].norm()
    assert float(relative) < 5 * close
