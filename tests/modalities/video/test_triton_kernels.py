"""The fused kernels against the layers' own arithmetic, in Triton's interpreter: no device is needed."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.modalities.video.blocks import norm_modulated
from fewstep.modalities.video.transformer import VideoTransformer

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed (its wheels run here in the interpreter: pip install triton)",
)

INTERPRETED = """
import torch
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer
from fewstep.modalities.video.triton_kernels import TritonKernels

torch.manual_seed(0)
# 48 and 12 are no powers of two, as 1536 and 12 heads of 128 are not either
sizes = TransformerConfig(dim=48, ffn_dim=96, num_layers=2, num_heads=4, channels=4, freq_dim=16, text_dim=8)
network = VideoTransformer(sizes).eval()
with torch.no_grad():
    for parameter in network.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))

@torch.inference_mode()
def velocity(position, dtype):
    network.to(dtype)
    x_t = torch.randn(2, 2, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    text = network.text_keys_values(torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(2)))
    t = torch.tensor([[0.9, 0.2], [0.4, 0.6]])
    return network.forward_chunk(x_t, t, text, past=None, position=position)

def compared(dtype, tolerance):
    for position in (5, torch.tensor(5)):  # complex rotations, and cosines and sines
        for fused in (False, True):
            network.use_kernels(None)
            expected, expected_keys = velocity(position, dtype)
            if fused:
                network.fuse_projections()
            network.use_kernels(TritonKernels())
            found, found_keys = velocity(position, dtype)
            assert expected.std() > 0.1
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
            torch.testing.assert_close(found_keys, expected_keys, atol=tolerance, rtol=tolerance)

compared(torch.float32, 1e-5)
compared(torch.bfloat16, 0.1)
print("equal")
"""


@needs_triton
def test_a_network_through_the_kernels_is_the_network() -> None:
    """In a process of its own: Triton decides at its first import whether to interpret."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", INTERPRETED],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert (done.returncode, done.stdout.strip()) == (0, "equal"), done.stderr[-3000:]


def test_the_layers_call_the_kernels_wherever_they_norm(
    make_network: Callable[..., VideoTransformer],
) -> None:
    """Counted with kernels that do what the layers do: none is left out, and results pass through."""
    network = make_network()
    calls = {"modulated": 0, "rotated": 0}

    class Counted:
        def norm_modulated(self, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
            calls["modulated"] += 1
            return norm_modulated(x, shift, scale, eps, None)

        def norm_rotated(
            self, pair: Tensor, weights: Tensor, rotation: Tensor, heads: int, eps: float
        ) -> tuple[Tensor, Tensor, Tensor]:
            calls["rotated"] += 1
            queries, keys = (pair * weights).unflatten(-1, (heads, -1)).unbind(2)
            return queries, keys, keys

    x_t, t = torch.randn(1, 2, 4, 4, 6).double(), torch.tensor([0.7])
    text = network.text_keys_values(torch.randn(1, 3, 8).double())
    network.use_kernels(Counted())
    network.forward_chunk(x_t, t, text, past=None, position=0)
    assert calls == {"modulated": 2 * 2 + 1, "rotated": 2}  # two layers and the head


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_kernels_are_the_network_too(
    make_network: Callable[..., VideoTransformer], dtype: torch.dtype
) -> None:
    from fewstep.modalities.video.triton_kernels import TritonKernels

    network = make_network(dtype=dtype).cuda()
    x_t = torch.randn(1, 2, 4, 4, 6, device="cuda")
    text = network.text_keys_values(torch.randn(1, 3, 8, device="cuda"))
    t = torch.full((1, 2), 0.7, device="cuda")
    with torch.inference_mode():
        expected = network.forward_chunk(x_t, t, text, past=None, position=3)[0]
        network.use_kernels(TritonKernels())
        found = network.forward_chunk(x_t, t, text, past=None, position=3)[0]
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
