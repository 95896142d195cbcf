"""Passes that are recorded once: every number that changes between them has to be in a buffer."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from fewstep.modalities.video.acceleration import SWITCHES, Acceleration
from fewstep.modalities.video.cache import MOST_WINDOWS, CacheConfig, SinkMode, StreamCache
from fewstep.modalities.video.rollout import ChunkRollout
from fewstep.modalities.video.rotary import RotaryEmbedding, rotate
from fewstep.modalities.video.static_passes import Inputs, StaticPasses, cuda_graph
from fewstep.modalities.video.transformer import VideoTransformer

MakeNetwork = Callable[..., VideoTransformer]
TIMES = (1.0, 0.7)


class Tracer:
    """What a CUDA graph does, on a CPU: the operations of one call on the tensors of that call, repeated
    with every Python number as it was.
    """

    def __init__(self) -> None:
        self.recordings = 0

    def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
        self.recordings += 1
        structure: list[Any] = []

        def flat() -> list[Tensor]:
            parts, spec = pytree.tree_flatten(run())
            structure.append(spec)
            return parts

        graph = make_fx(flat)()
        return lambda: pytree.tree_unflatten(graph(), structure[0])


def noise(chunk: int, step: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(100 * chunk + step)
    return torch.randn(1, 2, 4, 2, 4, generator=generator).to(dtype)


def chunks(
    network: VideoTransformer, config: CacheConfig, count: int, passes: StaticPasses | None
) -> list[Tensor]:
    """Chunks of a stream whose prompt changes on the way."""
    cache = StreamCache(network, config, batch=1, height=2, width=4)
    rollout = ChunkRollout(network, TIMES, context_time=0.1, frozen=True, passes=passes)
    generator = torch.Generator().manual_seed(7)
    prompts = [
        network.text_keys_values(torch.randn(1, 3, 8, generator=generator).to(network.dtype)) for _ in "12"
    ]
    made = []
    for chunk in range(count):
        text = prompts[chunk // 5 % 2]
        draw = lambda step, chunk=chunk: noise(chunk, step, network.dtype)  # noqa: E731 - as the rollout asks
        with torch.inference_mode():
            made.append(rollout.denoise(cache, text, draw))
            rollout.commit(cache, text, made[-1])
    return made


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(("window", "sink_mode"), [(6, "ema"), (4, "first"), (6, "none")])
def test_static_steps_are_the_plain_ones(
    make_network: MakeNetwork, sink_mode: SinkMode, window: int, recorded: bool
) -> None:
    """Over evictions, new counts of positions and changes of the text."""
    network = make_network(dtype=torch.float32)
    config = CacheConfig(window=window, chunk=2, sink=2, sink_mode=sink_mode, decay=0.6)
    tracer = Tracer()
    passes = StaticPasses(network, record=tracer if recorded else None)
    count = MOST_WINDOWS * window // 2 + 3
    expected, found = chunks(network, config, count, None), chunks(network, config, count, passes)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)  # float32 over chunks; observed 1e-5
    assert tracer.recordings == (2 if recorded else 0)  # a denoising step, and a pass into the cache


@pytest.mark.parametrize("kept", ["x_t", "t", "text", "position"])
def test_a_number_that_stayed_as_it_was_recorded_would_be_seen(
    make_network: MakeNetwork, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """The control: each of the four inputs matters, and reaches the recorded passes through its buffer."""
    network = make_network(dtype=torch.float32)
    config = CacheConfig(window=6, chunk=2, sink=2, decay=0.6)
    expected = chunks(network, config, 9, None)
    load = Inputs.load

    def forgetful(inputs: Inputs, x_t: Any, t: Any, text: Any, position: Any) -> None:
        new = {"x_t": x_t, "t": t, "text": text, "position": position}
        old = {"x_t": inputs.x_t, "t": inputs.t, "text": inputs.held, "position": 7}
        load(inputs, **{name: (old if name == kept else new)[name] for name in new})

    monkeypatch.setattr(Inputs, "load", forgetful)
    found = chunks(network, config, 9, StaticPasses(network, record=Tracer()))
    assert max((a - b).abs().max() for a, b in zip(found, expected, strict=True)) > 1e-3


def test_another_cache_is_recorded_anew(make_network: MakeNetwork) -> None:
    network = make_network(dtype=torch.float32)
    config, tracer = CacheConfig(window=4, chunk=2, sink=2), Tracer()
    passes = StaticPasses(network, record=tracer)
    first, second = (chunks(network, config, 5, passes) for _ in "12")
    torch.testing.assert_close(second, first, atol=0.0, rtol=0.0)
    assert tracer.recordings == 4


@pytest.mark.parametrize("position", [0, 5, 47])
def test_rotations_at_a_tensor_are_those_of_the_range(position: int) -> None:
    rope = RotaryEmbedding(12)
    device, dtype = torch.device("cpu"), torch.float64
    expected = rope(range(position, position + 3), 2, 4, dtype=dtype, device=device)
    found = rope.at(torch.tensor(position), 3, 2, 4, dtype=dtype)
    torch.testing.assert_close(torch.view_as_complex(found), expected, atol=1e-15, rtol=0.0)
    x = torch.randn(24, 4, 12, dtype=dtype)
    torch.testing.assert_close(rotate(x, found), rotate(x, expected), atol=1e-15, rtol=0.0)


COMPILED = """
import torch
from fewstep.modalities.video.cache import CacheConfig, StreamCache
from fewstep.modalities.video.rollout import ChunkRollout
from fewstep.modalities.video.static_passes import StaticPasses
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer
from torch._dynamo.utils import counters

torch.manual_seed(0)
sizes = TransformerConfig(dim=48, ffn_dim=96, num_layers=3, num_heads=4, channels=4, freq_dim=16, text_dim=8)
network = VideoTransformer(sizes).eval()
torch.nn.init.normal_(network.head.head.weight)
text = network.text_keys_values(torch.randn(1, 3, 8))
noise = torch.randn(12, 2, 1, 2, 4, 2, 4)

def chunks():
    cache = StreamCache(network, CacheConfig(window=6, chunk=2, sink=2), batch=1, height=2, width=4)
    rollout = ChunkRollout(network, (1.0, 0.7), frozen=True, passes=StaticPasses(network))
    made = []
    with torch.inference_mode():
        for chunk in range(12):
            made.append(rollout.denoise(cache, text, lambda step: noise[chunk, step]))
            rollout.commit(cache, text, made[-1])
    return torch.cat(made)

plain = chunks()
network.compile_blocks()
compiled = chunks()
assert not counters["graph_break"], counters["graph_break"]
torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-4)
print("graphs", counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow
def test_compiled_layers_are_the_plain_ones_in_one_graph_per_length_of_the_past() -> None:
    """In a process without the suite's checks of shapes, which are not to be compiled."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMPILED],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "TORCHDYNAMO_VERBOSE": "0",
            "TORCH_LOGS": "post_grad_graphs",
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",  # or a graph of an earlier run is not logged again
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # the chunk's keys and values are written where they belong, and the past is not copied
    assert "aten.copy_" in done.stderr
    assert "slice_scatter" not in done.stderr
    # no past, one chunk of it, the full window; three layers share each
    assert done.stdout.split() == ["graphs", "3"]


@pytest.mark.gpu
def test_cuda_graphs_replay_the_plain_steps(make_network: MakeNetwork) -> None:
    network = make_network(dtype=torch.float32).cuda()
    config = CacheConfig(window=6, chunk=2, sink=2, decay=0.6)
    cache_text = network.text_keys_values(torch.randn(1, 3, 8, device="cuda"))

    def run(passes: StaticPasses | None) -> list[Tensor]:
        cache = StreamCache(network, config, batch=1, height=2, width=4)
        rollout = ChunkRollout(network, TIMES, frozen=True, passes=passes)
        made = []
        with torch.inference_mode():
            for chunk in range(15):
                draw = lambda step, chunk=chunk: noise(chunk, step, torch.float32).cuda()  # noqa: E731
                made.append(rollout.denoise(cache, cache_text, draw))
                rollout.commit(cache, cache_text, made[-1])
        return made

    found = run(StaticPasses(network, record=cuda_graph))
    torch.testing.assert_close(found, run(None), atol=1e-3, rtol=1e-3)


def test_the_switch_for_graphs_asks_for_static_steps() -> None:
    assert SWITCHES["cuda_graphs"] == Acceleration(
        fused_projections=False, merged_passes=False, static_steps=True, cuda_graphs=True
    )
