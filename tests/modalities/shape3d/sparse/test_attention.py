import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.modalities.shape3d.sparse.attention import (
    PACKED_BACKENDS,
    PackedBackend,
    attention_to_condition,
    available_packed_backends,
    packed_attention,
    probe_packed,
    windowed_attention,
)
from fewstep.modalities.shape3d.sparse.segments import Segments
from fewstep.modalities.shape3d.sparse.tensor import Voxels

SIZES = [5, 1, 9]


def alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention among all rows, by its formula."""
    logits = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hij,jhd->ihd", logits.softmax(-1), v)


def rows(count: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(count, 2, 4), torch.randn(count, 2, 4), torch.randn(count, 2, 4)


@pytest.mark.parametrize("backend", [None, "padded", "loop"])
@pytest.mark.parametrize("trained", [False, True])
def test_every_segment_attends_as_if_alone(backend: PackedBackend | None, trained: bool) -> None:
    qkv = rows(sum(SIZES))
    for part in qkv:
        part.requires_grad_(trained)
    found = packed_attention(*qkv, Segments(torch.tensor(SIZES)), backend=backend)
    expected = torch.cat([alone(*parts) for parts in zip(*(part.split(SIZES) for part in qkv), strict=True)])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shift", [0, 2])
def test_every_window_attends_as_if_alone(shift: int) -> None:
    coords = (torch.rand(2, 8, 8, 8) < 0.2).nonzero().int()
    qkv = rows(len(coords))
    found = windowed_attention(*qkv, Voxels(coords, 2, 8), 4, shift)
    cubes = torch.cat([coords[:, :1], (coords[:, 1:] + shift) // 4], 1)
    for cube in cubes.unique(dim=0):
        inside = (cubes == cube).all(1)
        torch.testing.assert_close(found[inside], alone(*(part[inside] for part in qkv)))


def test_every_sample_attends_to_its_own_condition() -> None:
    q, k, v = torch.randn(sum(SIZES), 2, 4), torch.randn(3, 6, 2, 4), torch.randn(3, 6, 2, 4)
    found = attention_to_condition(q, k, v, Segments(torch.tensor(SIZES)))
    expected = torch.cat([alone(own, k[i], v[i]) for i, own in enumerate(q.split(SIZES))])
    torch.testing.assert_close(found, expected)


def test_forward_mode_derivatives_pass() -> None:
    qkv, segments = rows(sum(SIZES)), Segments(torch.tensor(SIZES))
    tangent = torch.randn_like(qkv[0])
    q, k, v = qkv
    derivative = torch.func.jvp(lambda q: packed_attention(q, k, v, segments), (q,), (tangent,))[1]
    step = 1e-3
    nearby = [packed_attention(q + s * step * tangent, k, v, segments) for s in (1, -1)]
    torch.testing.assert_close(derivative, (nearby[0] - nearby[1]) / (2 * step), atol=1e-3, rtol=1e-2)


def test_a_kernel_for_another_device_is_an_error_and_says_why_it_is_not_used() -> None:
    qkv = rows(sum(SIZES))
    with pytest.raises(ValueError, match="flash_attn needs CUDA tensors"):
        packed_attention(*qkv, Segments(torch.tensor(SIZES)), backend="flash_attn")
    assert "flash_attn needs CUDA" in (probe_packed("flash_attn", "cpu") or "")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_cpu_is_rounded_once_at_the_end(dtype: torch.dtype) -> None:
    q, k, v = (part.to(dtype) for part in rows(sum(SIZES)))
    segments = Segments(torch.tensor(SIZES))
    with torch.no_grad():
        found = packed_attention(q, k, v, segments)
    wide = packed_attention(q.float(), k.float(), v.float(), segments, backend="loop")
    assert torch.equal(found, wide.to(dtype))


def test_a_cpu_has_the_two_ways_without_a_kernel_of_their_own() -> None:
    found = available_packed_backends("cpu")
    assert set(found) >= {"padded", "loop"}
    assert "flash_attn" not in found


@pytest.mark.gpu
@pytest.mark.parametrize("backend", PACKED_BACKENDS)
def test_the_kernels_of_a_gpu_agree_with_the_formula(backend: PackedBackend) -> None:
    reason = probe_packed(backend, "cuda")
    if reason is not None:
        pytest.skip(reason)
    q, k, v = torch.randn(3, sum(SIZES), 2, 64, device="cuda", dtype=torch.bfloat16).unbind(0)
    found = packed_attention(q, k, v, Segments(torch.tensor(SIZES, device="cuda")), backend=backend)
    wide = [part.float().split(SIZES) for part in (q, k, v)]
    expected = torch.cat([alone(*parts) for parts in zip(*wide, strict=True)])
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2e-2)  # bfloat16


def test_padding_and_back_is_the_identity() -> None:
    segments, x = Segments(torch.tensor(SIZES)), torch.randn(sum(SIZES), 3)
    padded = segments.pad(x)
    assert padded.shape == (3, 9, 3)
    assert torch.equal(padded.sum(1), torch.stack([part.sum(0) for part in x.split(SIZES)]))
    assert torch.equal(segments.unpad(padded), x)
    assert not F.relu(padded[~segments.mask].abs()).any()
