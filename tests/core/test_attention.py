import math
import sys
import types
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor

from fewstep.core import attention as module
from fewstep.core.attention import attention, available_backends, flex_forward, probe, use_backend

FLOAT32_TOLERANCE = 2e-6  # sums of at most 16 terms of order one
BFLOAT16_TOLERANCE = 2e-2  # eight bits of mantissa


def literal_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The textbook formula in float64, with loops over batch and heads."""
    out = torch.empty_like(q, dtype=torch.float64)
    if mask is not None:
        mask = mask.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            logits = q[b, :, h].double() @ k[b, :, h].double().T / math.sqrt(q.shape[-1])
            if mask is not None and mask.dtype == torch.bool:
                logits[~mask[b, h]] = -math.inf
            elif mask is not None:
                logits = logits + mask[b, h].double()
            weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
            out[b, :, h] = weights @ v[b, :, h].double()
    return out


def tensors(dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 5, 3, dim), torch.randn(2, 11, 3, dim), torch.randn(2, 11, 3, dim)


def boolean_mask(shape: tuple[int, int, int, int]) -> Tensor:
    mask = torch.rand(shape) > 0.4
    mask[..., 0] = True  # a query that may look nowhere has no defined answer
    return mask


MASKS = {
    "none": lambda: None,
    "boolean": lambda: boolean_mask((2, 3, 5, 11)),
    "boolean, shared": lambda: boolean_mask((1, 1, 5, 11)),
    "float": lambda: torch.randn(2, 3, 5, 11),
    "float, shared": lambda: torch.randn(1, 1, 1, 11),
}


@pytest.mark.parametrize("backend", ["sdpa", "matmul"])
@pytest.mark.parametrize("mask_name", MASKS)
def test_attention_equals_the_literal_softmax(backend: module.Backend, mask_name: str) -> None:
    q, k, v = tensors()
    mask = MASKS[mask_name]()
    out = attention(q, k, v, mask=mask, backend=backend)
    torch.testing.assert_close(out.double(), literal_attention(q, k, v, mask), atol=FLOAT32_TOLERANCE, rtol=0)


@pytest.mark.parametrize("mask_name", MASKS)
def test_what_flex_compiles_equals_the_literal_softmax(mask_name: str) -> None:
    q, k, v = tensors(dim=16)
    mask = MASKS[mask_name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises to compile it
        out = flex_forward(q, k, v, mask)
    torch.testing.assert_close(out.double(), literal_attention(q, k, v, mask), atol=FLOAT32_TOLERANCE, rtol=0)


@pytest.mark.parametrize("mask_name", ["boolean, shared", "float", "float, shared"])
def test_the_bias_made_for_xformers_is_the_mask_in_aligned_rows(mask_name: str) -> None:
    q, k, v = tensors()
    mask = MASKS[mask_name]()
    assert mask is not None
    bias = module._aligned_bias(mask, q, k)
    assert bias.shape == (2, 3, 5, 11)
    assert all(stride % module.XFORMERS_ALIGNMENT == 0 for stride in bias.stride()[:-1])
    torch.testing.assert_close(attention(q, k, v, mask=bias), attention(q, k, v, mask=mask))


def test_a_wrong_scale_would_be_noticed() -> None:
    q, k, v = tensors()
    difference = attention(2 * q, k, v).double() - literal_attention(q, k, v, None)
    assert difference.abs().max() > 100 * FLOAT32_TOLERANCE


def test_sdpa_and_matmul_work_on_a_cpu_and_the_others_say_why() -> None:
    assert available_backends("cpu") == ("sdpa", "matmul")
    assert probe("sdpa", "cpu") is None
    assert "CUDA" in (probe("flex", "cpu") or "")
    assert "\n" not in (probe("flash_attn", "cpu") or "\n")


def test_an_explicit_backend_is_never_replaced() -> None:
    q, k, v = tensors()
    with pytest.raises(NotImplementedError, match="CUDA devices only"):
        attention(q, k, v, backend="flex")
    with use_backend("flex"):
        with pytest.raises(NotImplementedError, match="CUDA devices only"):
            attention(q, k, v)
        assert attention(q, k, v, backend="sdpa").shape == q.shape
    assert attention(q, k, v).shape == q.shape


def test_an_unknown_backend_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="choose one of sdpa, flash_attn, cudnn, xformers, flex, matmul"):
        module._kernel("flash")


@pytest.mark.parametrize("backend", module.HALF_AND_DENSE)
def test_kernels_for_16_bits_refuse_masks_and_float32_with_a_remedy(backend: module.Backend) -> None:
    q, k, v = tensors()
    with pytest.raises(ValueError, match=r"takes no mask.*; use backend='sdpa'"):
        attention(q, k, v, mask=boolean_mask((1, 1, 5, 11)), backend=backend)
    with pytest.raises(ValueError, match=r"needs CUDA .* float16 or bfloat16, got torch\.float32 on cpu"):
        attention(q, k, v, backend=backend)


def test_flash_attention_3_is_taken_where_the_device_has_kernels_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    three, two = types.ModuleType("flash_attn_interface"), types.ModuleType("flash_attn")
    for version in (three, two):
        version.__dict__["flash_attn_func"] = partial(getattr, version, "__name__")
    monkeypatch.setitem(sys.modules, "flash_attn", two)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", three)
    assert module._flash_function((9, 0))() == "flash_attn_interface"
    assert module._flash_function((8, 0))() == "flash_attn"
    assert module._flash_function((12, 0))() == "flash_attn"  # Blackwell, which the third has no kernels for
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)
    assert module._flash_function((9, 0))() == "flash_attn"


def test_on_a_cpu_gradients_and_few_tokens_in_bfloat16_take_plain_matrix_products() -> None:
    q, k, v = tensors()
    assert module._choose(q, k, v, None) == "sdpa"
    v.requires_grad_()
    assert module._choose(q, k, v, None) == "matmul"
    with torch.no_grad():
        assert module._choose(q, k, v, None) == "sdpa"
        assert module._choose(q.bfloat16(), k.bfloat16(), v.bfloat16(), None) == "matmul"
        many = torch.empty(1, 3000, 2, 4, dtype=torch.bfloat16)
        assert module._choose(many, many, many, None) == "sdpa"


def test_forward_mode_derivatives_take_plain_matrix_products() -> None:
    q, k, v = tensors()
    slope = torch.func.jvp(lambda q: attention(q, k, v), (q,), (torch.ones_like(q),))[1]
    with torch.no_grad():
        step = 1e-3
        difference = (attention(q + step, k, v) - attention(q - step, k, v)) / (2 * step)
    torch.testing.assert_close(slope, difference, atol=1e-3, rtol=0)  # rounding over the step
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(lambda q: attention(q, k, v, backend="sdpa"), (q,), (torch.ones_like(q),))


@pytest.mark.parametrize("backend", ["sdpa", "matmul"])
def test_the_gradient_equals_that_of_the_literal_softmax(backend: module.Backend) -> None:
    q, k, v = (tensor.requires_grad_() for tensor in tensors())
    weight = torch.randn(2, 5, 3, 8)
    ours = torch.autograd.grad((attention(q, k, v, backend=backend) * weight).sum(), (q, k, v))
    theirs = torch.autograd.grad((literal_attention(q, k, v, None) * weight).sum(), (q, k, v))
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)  # float32 against float64


@pytest.mark.gpu
@pytest.mark.parametrize("backend", module.BACKENDS)
@pytest.mark.parametrize("mask_name", MASKS)
def test_every_backend_of_this_gpu_equals_the_literal_softmax(
    backend: module.Backend, mask_name: str
) -> None:
    if backend not in available_backends("cuda"):
        pytest.skip(f"{backend}: {probe(backend, 'cuda')}")
    mask = MASKS[mask_name]()
    if backend in module.HALF_AND_DENSE and mask is not None:
        pytest.skip(f"{backend} takes no mask")
    q, k, v = (tensor.to("cuda", torch.bfloat16) for tensor in tensors(dim=64))
    mask = (
        None if mask is None else mask.to("cuda", torch.bool if mask.dtype == torch.bool else torch.bfloat16)
    )
    out = attention(q, k, v, mask=mask, backend=backend)
    expected = literal_attention(q.cpu(), k.cpu(), v.cpu(), None if mask is None else mask.cpu())
    torch.testing.assert_close(out.cpu().double(), expected, atol=BFLOAT16_TOLERANCE, rtol=BFLOAT16_TOLERANCE)
