"""The cache's sink: a running average of the frames that left the ring, which the next chunk sees."""

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewstep.modalities.video.cache import CacheConfig
from fewstep.modalities.video.transformer import VideoTransformer
from tests.modalities.video.cache_streams import (
    by_frame,
    clip,
    configurations,
    entries,
    examples,
    new_cache,
    prompt,
    time,
)

MakeNetwork = Callable[..., VideoTransformer]


@examples
@given(config=configurations(("ema",)), chunks=st.integers(1, 9))
def test_the_sink_is_the_closed_form_of_its_evictions(
    make_network: MakeNetwork, config: CacheConfig, chunks: int
) -> None:
    network = make_network()
    cache = new_cache(network, config)
    frames, evicted = [], []
    for index in range(chunks):
        fresh = entries(network, config.chunk, seed=index)
        frames.extend(by_frame(fresh, config.chunk))
        cache.commit(fresh, config.chunk)
        evicted.extend(cache.evicted)
    a, sink = config.decay, cache.sink
    assert sink.shape[3] == min(config.sink, len(frames))
    for slot in range(sink.shape[3]):
        fused = [frames[j] for j in evicted if j % config.sink == slot]
        n = len(fused)
        expected = a**n * frames[slot]
        for i, entry in enumerate(fused, start=1):
            expected = expected + (1 - a) * a ** (n - i) * entry
        torch.testing.assert_close(sink[:, :, :, slot], expected, atol=1e-12, rtol=0.0)


def test_evicting_what_the_sink_already_holds_leaves_it_as_it_is(make_network: MakeNetwork) -> None:
    network = make_network()
    cache = new_cache(network, CacheConfig(window=6, chunk=2, sink=2, decay=0.7))
    same = entries(network, 2, seed=0)
    for _ in range(6):
        cache.commit(same, 2)
    assert cache.evicted
    torch.testing.assert_close(cache.sink.movedim(3, 0), by_frame(same, 2), atol=1e-14, rtol=0.0)


def test_the_next_chunk_already_sees_the_fused_sink(make_network: MakeNetwork) -> None:
    network = make_network()
    text = prompt(network)[1]

    def fourth_chunk(evicted_seed: int, mode: str) -> Tensor:
        """Chunk 3, over a ring that holds chunk 2 alone: chunk 1 acts through the sink or not at all."""
        config = CacheConfig(window=9, chunk=3, sink=3, sink_mode=mode, decay=0.9)  # pyright: ignore[reportArgumentType]
        cache = new_cache(network, config)
        for seed in (0, evicted_seed, 2):
            cache.commit(entries(network, 3, seed=seed), 3)
        assert cache.evicted == [3, 4, 5]
        return network.forward_chunk(clip(3), time(1.0), text, past=cache.past(), position=cache.position)[0]

    assert (fourth_chunk(1, "ema") - fourth_chunk(9, "ema")).abs().max() > 1e-5
    assert torch.equal(fourth_chunk(1, "first"), fourth_chunk(9, "first"))


def fused(frames: list[Tensor], decay: float, dtype: torch.dtype) -> Tensor:
    """The running average of a list of frames, kept in ``dtype``."""
    sink = frames[0].to(dtype)
    for entry in frames[1:]:
        sink = (decay * sink + (1 - decay) * entry.to(dtype)).to(dtype)
    return sink


def test_the_sink_of_a_bfloat16_network_really_moves(make_network: MakeNetwork) -> None:
    network = make_network(dtype=torch.bfloat16, num_layers=1)
    decay = 0.999
    cache = new_cache(network, CacheConfig(window=2, chunk=1, sink=1, decay=decay))
    frames = []
    for index in range(301):  # the first fills the sink, the 300 after it pass straight on into it
        fresh = entries(network, 1, seed=index)
        frames.extend(by_frame(fresh, 1))
        cache.commit(fresh, 1)
    exact = fused(frames, decay, torch.float64)
    moved = (exact - frames[0].double()).abs().mean()

    def error(sink: Tensor) -> Tensor:
        return (sink.double() - exact).abs().mean() / moved

    assert cache.sink.dtype == torch.float32
    assert error(cache.sink[:, :, :, 0]) < 1e-4
    # must fail: the same average kept in bfloat16 loses much of the movement
    assert error(fused(frames, decay, torch.bfloat16)) > 0.1
