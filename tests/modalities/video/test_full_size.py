"""Streams at their real size on the meta device, which has shapes and no numbers: what a GPU would hold, and
that nothing on the way asks it for a number.
"""

import math
import weakref
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.core.attention import use_backend
from fewstep.modalities.video.acceleration import SWITCHES
from fewstep.modalities.video.cache import CacheConfig, StreamCache
from fewstep.modalities.video.random_weights import SHAPES, Shape, random_features, random_model
from fewstep.modalities.video.static_passes import StaticPasses
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer
from fewstep.modalities.video.video_stream import VideoStream

LARGE = SHAPES["wan2.1-1.3b"]
GIGABYTE = 1e9
CHUNKS = 5  # over a full window of nine frames and an eviction


class Held(TorchDispatchMode):
    """Bytes of tensors on the meta device that are alive, and the most there ever were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in pytree.tree_leaves(out):
            if isinstance(part, Tensor) and part.is_meta:
                storage = part.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata)
        self.most = max(self.most, self.now)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def weightless(shape: Shape, name: str, *, light: bool = True) -> VideoStream:
    """A stream without a number, run as the acceleration of this name says, but for what needs a GPU."""
    how = replace(SWITCHES[name], compiled=False, cuda_graphs=False, overlapped_decoding=False)
    model = random_model(
        shape,
        recipe_name="reward-forcing",
        light=light,
        device="meta",
        dtype=torch.bfloat16,
        acceleration=how,
    )
    stream = model.stream(random_features(shape))
    assert isinstance(stream, VideoStream)
    return stream


@torch.inference_mode()
def step(stream: VideoStream) -> None:
    """A chunk, but for its bytes on the host."""
    made = stream.make()
    stream.memory = stream._codec.decode_chunk(made.latents, stream.memory)[1]
    stream.take(made)


@pytest.fixture(autouse=True)
def no_numbers_for_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drift that a page shows is the one number that a chunk is asked for, once it is made."""
    monkeypatch.setattr(StreamCache, "sink_drift", 0.0)


@pytest.mark.parametrize("name", ["default", "exact", "last_step"])
def test_no_step_of_a_chunk_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number asked for is an error on this device, one that goes there by itself one here."""

    def waits(*args: object) -> Tensor:
        raise AssertionError("a number is copied to the device, which the host waits for")

    monkeypatch.setattr(Tensor, "new_tensor", waits)
    stream = weightless(replace(LARGE, transformer=TransformerConfig(num_layers=2)), name)
    with use_backend("sdpa"):
        for _ in range(CHUNKS):
            step(stream)
    assert stream.index == CHUNKS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "light", "most"), [("exact", True, 15.0), ("exact", False, 20.0), ("default", True, 22.0)]
)
def test_a_stream_fits_into_the_memory_it_is_said_to_need(name: str, light: bool, most: float) -> None:
    """Weights, cache and activations of the 1.3B student at 832x480, decoded in turn. What recorded graphs
    keep for themselves comes on top.
    """
    with Held() as held, use_backend("sdpa"):
        stream = weightless(LARGE, name, light=light)
        for _ in range(CHUNKS):
            step(stream)
    assert held.most / GIGABYTE < most


def test_steps_keep_nothing_that_only_the_cache_wants() -> None:
    """Keys and values of all layers, of which a denoising step needs each only until the next."""
    network = weightless(
        replace(LARGE, transformer=TransformerConfig(num_layers=8)), "exact"
    )._rollout.network
    x_t = torch.empty(1, 3, 16, 60, 104, device="meta")
    with torch.inference_mode(), use_backend("sdpa"):
        text = network.text_keys_values(torch.empty(1, 512, 4096, device="meta"))
        t, most = network.modulations(torch.empty(1, 3, device="meta")), []
        for keep in (False, True):
            with Held() as held:
                network.forward_chunk(x_t, t, text, past=None, position=0, keep=keep)
            most.append(held.most)
    layer = 3 * 1560 * 1536 * 2  # of keys, and three times as much of what values are a part of
    assert most[1] - most[0] > 5 * 4 * layer


def test_the_drift_of_a_sink_is_of_products_that_a_gpu_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 2^31 numbers each: the sink of 14B at 1280x720 has twice as many."""
    monkeypatch.undo()
    with torch.device("meta"):
        config = TransformerConfig(dim=5120, ffn_dim=13824, num_layers=40, num_heads=40)
        network = VideoTransformer(config).bfloat16()
    cache = StreamCache(network, CacheConfig(window=9), batch=1, height=90, width=160)
    assert cache.sink.numel() == 0
    cache.frames_seen = 12
    sizes: list[int] = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.dot.default:
                sizes.append(args[0].numel())
            return func(*args, **(kwargs or {}))

    with Products(), pytest.raises((RuntimeError, NotImplementedError)):
        _ = cache.sink_drift  # in the end a number, which this device has not
    assert max(sizes) < 2**31
    assert sum(sizes) == 3 * math.prod(cache._sink.shape)


def test_passes_are_recorded_and_replayed_with_their_own_device_present(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of several GPUs another one may be: a graph captured there would hold none of the launches."""
    present: list[torch.device] = []

    @contextmanager
    def device_of(x: Tensor) -> Any:
        present.append(x.device)
        yield
        present.pop()

    seen = []

    def record(run: Any) -> Any:
        seen.append(("record", present[-1].type))
        result = run()

        def replay() -> Any:
            seen.append(("replay", present[-1].type))
            return result

        return replay

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    stream = weightless(replace(LARGE, transformer=TransformerConfig(num_layers=1)), "exact")
    passes = StaticPasses(stream._rollout.network, record=record)
    object.__setattr__(stream._rollout, "passes", passes)
    with use_backend("sdpa"):
        for _ in range(CHUNKS - 1):
            step(stream)
    assert seen.count(("record", "meta")) == 2
    assert len(seen) == 2 + seen.count(("replay", "meta"))
