"""The cache's ring: which frames leave and when, states and failed commits, memory, positions, settings."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewstep.modalities.video.cache import MOST_WINDOWS, CacheConfig, StreamCache
from fewstep.modalities.video.rollout import ChunkRollout
from fewstep.modalities.video.transformer import VideoTransformer
from tests.modalities.video.cache_streams import (
    EXACT,
    clip,
    configurations,
    entries,
    examples,
    new_cache,
    prompt,
    stream,
    time,
)

MakeNetwork = Callable[..., VideoTransformer]


def test_frames_leave_in_the_order_of_reward_forcing(make_network: MakeNetwork) -> None:
    """Window 9, sink 3, chunk 3, the released setting: what each chunk sees and what was fused before it."""
    network = make_network()
    cache = new_cache(network, CacheConfig(window=9, chunk=3, sink=3))
    for chunk in range(12):
        before = [] if chunk < 3 else [3 * chunk - 6, 3 * chunk - 5, 3 * chunk - 4]
        sink = [] if chunk == 0 else [0, 1, 2]
        recent = {0: [], 1: []}.get(chunk, [3 * chunk - 3, 3 * chunk - 2, 3 * chunk - 1])
        assert cache.evicted == before
        assert (cache.sink_ids, cache.window_ids) == (sink, recent)
        assert cache.past_frames == min(3 * chunk, 6)
        cache.commit(entries(network, 3, seed=chunk), 3)


@examples
@given(config=configurations(("none", "first", "ema")), chunks=st.integers(1, 12))
def test_frames_leave_oldest_first_each_once_and_positions_stay_below_four_windows(
    make_network: MakeNetwork, config: CacheConfig, chunks: int
) -> None:
    network = make_network(num_layers=1)
    cache = new_cache(network, config)
    evicted = []
    for index in range(chunks):
        assert cache.past_frames <= cache.position
        assert cache.position + config.chunk <= MOST_WINDOWS * config.window
        cache.commit(entries(network, config.chunk, seed=index), config.chunk)
        evicted.extend(cache.evicted)
        frames = [*cache.sink_ids, *evicted, *cache.window_ids]
        assert frames == list(range(config.chunk * (index + 1)))
    kept = config.window - config.chunk
    assert len(evicted) == max(0, chunks * config.chunk - kept)


def assert_same_state(found: dict[str, Any], expected: dict[str, Any]) -> None:
    torch.testing.assert_close(found, expected, atol=0.0, rtol=0.0)


def test_denoising_never_changes_the_cache_and_repeats_itself(make_network: MakeNetwork) -> None:
    network = make_network()
    cache = stream(network, CacheConfig(window=6, chunk=2, sink=2), 5)[1]
    before = cache.state()
    rollout = ChunkRollout(network, (1.0, 0.8, 0.5))
    x0 = [rollout.denoise(cache, prompt(network)[1], lambda step: clip(2, step)) for _ in range(2)]
    assert torch.equal(x0[0], x0[1])
    assert_same_state(cache.state(), before)


def test_a_state_taken_before_a_commit_undoes_it(make_network: MakeNetwork) -> None:
    network = make_network()
    text = prompt(network)[1]
    config = CacheConfig(window=7, chunk=2, sink=2)
    cache = stream(network, config, 5)[1]
    state = cache.state()
    look = clip(2, 99)
    seen = network.forward_chunk(look, time(1.0), text, past=cache.past(), position=cache.position)[0]
    cache.commit(entries(network, 2, seed=5), 2)
    other = network.forward_chunk(look, time(1.0), text, past=cache.past(), position=cache.position)[0]
    assert not torch.equal(seen, other)
    cache.load_state(state)
    again = network.forward_chunk(look, time(1.0), text, past=cache.past(), position=cache.position)[0]
    assert torch.equal(again, seen)
    assert_same_state(cache.state(), state)


@pytest.mark.parametrize("sizes", [(8, 3, 2), (7, 3, 2), (5, 3, 2)])
def test_a_commit_that_fails_halfway_changes_nothing_and_is_made_again(
    make_network: MakeNetwork, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int, int]
) -> None:
    """The ring holds a chunk, less than a chunk, or nothing."""
    network = make_network()
    window, chunk, sink = sizes
    config = CacheConfig(window=window, chunk=chunk, sink=sink)
    cache, undisturbed = (stream(network, config, 5)[1] for _ in "12")
    before, fuse, calls = cache.state(), StreamCache._fuse, []

    def fail_at_the_second(self: StreamCache, *frame: Any) -> None:
        calls.append(frame)
        if len(calls) == 2:
            raise MemoryError("injected")
        fuse(self, *frame)

    fresh = entries(network, chunk, seed=5)
    with monkeypatch.context() as patch:
        patch.setattr(StreamCache, "_fuse", fail_at_the_second)
        with pytest.raises(MemoryError, match="injected"):
            cache.commit(fresh, chunk)
    assert_same_state(cache.state(), before)
    for one in (cache, undisturbed):
        one.commit(fresh, chunk)
    assert_same_state(cache.state(), undisturbed.state())
    assert cache.sink_drift == undisturbed.sink_drift


def held_bytes(cache: StreamCache) -> int:
    """All storage behind the cache's tensors, and the length of everything else it holds."""

    def walk(value: object) -> int:
        if isinstance(value, Tensor):
            return value.untyped_storage().nbytes()
        if isinstance(value, dict):
            return sum(map(walk, value.values())) + len(value)
        if isinstance(value, list | tuple):
            return sum(map(walk, value)) + len(value)
        return 0

    return walk({name: value for name, value in vars(cache).items() if name != "_network"})


def test_memory_is_constant_over_ten_thousand_frames(make_network: MakeNetwork) -> None:
    network = make_network(dtype=torch.float32, num_layers=1, dim=12, num_heads=1)
    cache = new_cache(network, CacheConfig(window=12, chunk=3, sink=3))
    fresh = entries(network, 3, seed=0)
    held, rotations = [], []
    for index in range(10_002 // 3):
        cache.commit(fresh, 3)
        cache.past()
        if index % 300 == 100:  # after a few new counts all positions have come by
            held.append(held_bytes(cache))
            rotations.append(len(network.rope._known))
    assert cache.frames_seen == 10_002
    assert cache.window_ids == list(range(9_996, 10_002))
    assert len(set(held)) == len(set(rotations)) == 1
    past = cache.past()
    assert past is not None
    assert all(bool(layer.keys.isfinite().all()) for layer in past)


@pytest.mark.parametrize("chunks", [3, 9, 11, 12, 13, 400])
def test_where_positions_are_counted_from_changes_nothing(make_network: MakeNetwork, chunks: int) -> None:
    """400 chunks are 1200 frames, more than the 1024 rows of Wan's table; 11 to 13 are around a new count."""
    network = make_network()
    text = prompt(network)[1]
    caches = [new_cache(network, CacheConfig(window=9, chunk=3, sink=3)) for _ in "12"]
    for index in range(chunks):
        for cache in caches:
            cache.commit(entries(network, 3, seed=index % 7), 3)
    renumbered = caches[1].state()
    renumbered["origin"] -= 5
    caches[1].load_state(renumbered)
    assert caches[1].position == caches[0].position + 5
    velocities = [
        network.forward_chunk(clip(3), time(1.0), text, past=cache.past(), position=cache.position)[0]
        for cache in caches
    ]
    torch.testing.assert_close(*velocities, **EXACT)
    late = network.forward_chunk(
        clip(3), time(1.0), text, past=caches[0].past(), position=caches[0].position + 1
    )[0]
    assert (late - velocities[0]).abs().max() > 1e-4  # must fail: distances do matter


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"chunk": 0}, "chunk=0"),
        ({"sink": -1}, "sink=-1"),
        ({"window": 5}, "window=5 .* at least 6"),
        ({"window": 2, "sink_mode": "none"}, "window=2 .* at least 3"),
        ({"decay": 1.01}, "decay=1.01"),
        ({"decay": -0.1}, "decay=-0.1"),
        ({"decay": float("nan")}, "decay=nan"),
    ],
)
def test_impossible_caches_are_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CacheConfig(**{"window": 9, "chunk": 3, "sink": 3, **wrong})


def test_an_unknown_sink_mode_is_named() -> None:
    config = CacheConfig()
    object.__setattr__(config, "sink_mode", "last")  # the type checks of the tests would stop it earlier
    with pytest.raises(ValueError, match="sink_mode='last': use 'none', 'first' or 'ema'"):
        config.__post_init__()


def test_a_cache_without_sink_needs_no_room_for_one() -> None:
    assert CacheConfig(window=3, chunk=3, sink=3, sink_mode="none").ring_frames == 0
    assert [CacheConfig(window=w, chunk=3, sink=3).ring_frames for w in (6, 9, 12)] == [0, 3, 6]
    assert all(b - a == 1 for a, b in pairwise(CacheConfig(window=w).ring_frames for w in range(6, 9)))


def test_the_room_for_a_chunk_is_written_anew_by_every_pass(make_network: MakeNetwork) -> None:
    """Without gradients a chunk's own keys go into the cache's memory, with gradients into a copy."""
    network = make_network()
    text = prompt(network)[1]
    cache = new_cache(network, CacheConfig(window=9, chunk=3, sink=3))
    for index in range(5):
        cache.commit(entries(network, 3, seed=index), 3)

    def velocity(x: Tensor) -> Tensor:
        return network.forward_chunk(x, time(0.5), text, past=cache.past(), position=cache.position)[0]

    expected = [velocity(clip(3, seed)) for seed in (1, 2)]
    assert expected[0].requires_grad
    with torch.no_grad():
        for seed, copied in ((1, expected[0]), (2, expected[1]), (1, expected[0])):
            torch.testing.assert_close(velocity(clip(3, seed)), copied.detach(), **EXACT)
