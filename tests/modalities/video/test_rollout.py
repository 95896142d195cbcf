"""The rollout: few-step generation by hand, and where its gradient enters."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.modalities.video.blocks import KeysValues
from fewstep.modalities.video.cache import CacheConfig, SinkMode, StreamCache
from fewstep.modalities.video.rollout import ChunkRollout, Finished, roll_out
from fewstep.modalities.video.transformer import VideoTransformer

MakeNetwork = Callable[..., VideoTransformer]

TIMES = (1.0, 0.8, 0.3)
SHAPE = (2, 2, 4, 2, 4)
EVICTING = CacheConfig(window=6, chunk=2, sink=2, decay=0.6)  # forgets from the third chunk on


def noise(chunk: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * chunk + step)
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def words(network: VideoTransformer, seed: int = 7) -> list[KeysValues]:
    generator = torch.Generator().manual_seed(seed)
    return network.text_keys_values(torch.randn(2, 3, 8, generator=generator, dtype=torch.float64))


def new_cache(network: VideoTransformer) -> StreamCache:
    return StreamCache(network, EVICTING, batch=2, height=2, width=4)


def chunk_by_hand(network: VideoTransformer, cache: StreamCache, chunk: int, exit_step: int) -> Tensor:
    """The clean chunk predicted at the exit step, the only one that has a graph, over a copy of the past."""
    past = cache.past()
    kept = past and [KeysValues(layer.keys.clone(), layer.values.clone()) for layer in past]

    def velocity(x_t: Tensor, t: float) -> Tensor:
        times = torch.full((2,), t)  # float32, as the rollout's
        return network.forward_chunk(x_t, times, words(network), past=kept, position=cache.position)[0]

    with torch.no_grad():
        x_t = noise(chunk, 0)
        for step in range(exit_step):
            x0 = x_t - TIMES[step] * velocity(x_t, TIMES[step])
            x_t = (1 - TIMES[step + 1]) * x0 + TIMES[step + 1] * noise(chunk, step + 1)
    return x_t - TIMES[exit_step] * velocity(x_t, TIMES[exit_step])


def gradients(network: VideoTransformer, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {name: torch.zeros(()) if g is None else g for name, g in zip(names, found, strict=True)}


def weighted_sum(x: Tensor) -> Tensor:
    """A loss whose gradient at the sample is random but known."""
    return (x * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)).sum()


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0.0)


@pytest.mark.parametrize("exit_step", [0, 1, 2])
def test_a_chunk_and_its_gradient_are_those_of_the_exit_step(
    make_network: MakeNetwork, exit_step: int
) -> None:
    network = make_network()
    cache = new_cache(network)
    rollout = ChunkRollout(network, TIMES)
    rollout.commit(cache, words(network), noise(9, 9))
    x0 = rollout.denoise(
        cache, words(network), lambda step: noise(0, step), exit_step=exit_step, gradient=True
    )
    expected = chunk_by_hand(network, cache, 0, exit_step)
    torch.testing.assert_close(x0, expected, atol=1e-12, rtol=0.0)
    assert_same_gradients(gradients(network, weighted_sum(x0)), gradients(network, weighted_sum(expected)))


def test_the_last_step_is_the_default_and_carries_no_gradient_unasked(make_network: MakeNetwork) -> None:
    network = make_network()
    rollout = ChunkRollout(network, TIMES)
    x0 = rollout.denoise(new_cache(network), words(network), lambda step: noise(0, step))
    assert not x0.requires_grad
    torch.testing.assert_close(x0, chunk_by_hand(network, new_cache(network), 0, 2), atol=1e-12, rtol=0.0)


def test_no_gradient_is_made_where_gradients_are_off(make_network: MakeNetwork) -> None:
    network = make_network()
    with torch.no_grad():
        x0 = ChunkRollout(network, TIMES).denoise(
            new_cache(network), words(network), lambda step: noise(0, step), gradient=True
        )
    assert not x0.requires_grad


def test_noise_is_asked_for_by_chunk_and_step_and_never_beyond_the_exit(make_network: MakeNetwork) -> None:
    network = make_network()
    asked: list[tuple[int, int]] = []

    def recorded(chunk: int, step: int) -> Tensor:
        asked.append((chunk, step))
        return noise(chunk, step)

    roll_out(ChunkRollout(network, TIMES), new_cache(network), [words(network)] * 2, recorded, exit_step=1)
    assert asked == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_the_cache_holds_constants_whatever_the_chunks_carry(make_network: MakeNetwork) -> None:
    network = make_network()
    cache = new_cache(network)
    x = roll_out(
        ChunkRollout(network, TIMES), cache, [words(network)] * 4, noise, exit_step=1, gradient_from=0
    )
    assert x.requires_grad
    assert cache.evicted
    assert not any(layer.room.requires_grad for layer in cache.past() or [])
    assert not cache.sink.requires_grad


@pytest.mark.parametrize("gradient_from", [0, 2])
@pytest.mark.parametrize("exit_step", [0, 2])
def test_the_gradient_over_evictions_is_that_of_a_past_kept_aside(
    make_network: MakeNetwork, exit_step: int, gradient_from: int
) -> None:
    """In-place writes into the ring must not reach the graphs of earlier chunks."""
    network = make_network()
    rollout, chunks = ChunkRollout(network, TIMES), 5
    cache = new_cache(network)
    x = roll_out(
        rollout,
        cache,
        [words(network)] * chunks,
        noise,
        exit_step=exit_step,
        gradient_from=gradient_from,
    )
    assert cache.evicted

    aside, parts = new_cache(network), []
    for chunk in range(chunks):
        x0 = chunk_by_hand(network, aside, chunk, exit_step)
        parts.append(x0 if chunk >= gradient_from else x0.detach())
        rollout.commit(aside, words(network), x0.detach())
    expected = torch.cat(parts, dim=1)
    torch.testing.assert_close(x, expected, atol=1e-12, rtol=0.0)
    assert_same_gradients(gradients(network, weighted_sum(x)), gradients(network, weighted_sum(expected)))


def test_only_the_chunks_from_the_first_judged_one_are_differentiated(make_network: MakeNetwork) -> None:
    network = make_network()
    x = roll_out(
        ChunkRollout(network, TIMES), new_cache(network), [words(network)] * 3, noise, gradient_from=2
    )
    early = gradients(network, weighted_sum(x[:, :4]))
    late = gradients(network, weighted_sum(x[:, 4:]))
    assert all(not bool(g.any()) for g in early.values())
    assert any(bool(g.any()) for g in late.values())


def test_each_chunk_obeys_its_own_text(make_network: MakeNetwork) -> None:
    network = make_network()
    rollout = ChunkRollout(network, TIMES)
    one, other = words(network, 1), words(network, 2)
    steady = roll_out(rollout, new_cache(network), [one, one, one], noise)
    switched = roll_out(rollout, new_cache(network), [one, one, other], noise)
    assert torch.equal(steady[:, :4], switched[:, :4])
    assert (steady[:, 4:] - switched[:, 4:]).abs().max() > 1e-3


def test_the_finished_chunk_enters_the_cache_at_the_context_time(make_network: MakeNetwork) -> None:
    network = make_network()
    clean, text = noise(0, 0), words(network)
    for context_time in (0.0, 0.1):
        cache = new_cache(network)
        ChunkRollout(network, TIMES, context_time).commit(cache, text, clean)
        with torch.no_grad():
            fresh = network.forward_chunk(clean, torch.full((2,), context_time), text, past=None, position=0)[
                1
            ]
        keys = torch.stack([layer.keys for layer in fresh]).unflatten(2, (2, -1))
        assert torch.equal(cache.sink[:, 0], keys)


@pytest.mark.parametrize(
    ("times", "named"),
    [
        ((), "must start at 1.0 and descend"),
        ((0.9, 0.5), "must start at 1.0"),
        ((1.0, 0.5, 0.5), "descend"),
        ((1.0, 0.2, 0.4), "descend"),
        ((1.0, 0.5, 0.0), "must end above 0"),
    ],
)
def test_impossible_times_are_named(make_network: MakeNetwork, times: tuple[float, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ChunkRollout(make_network(), times)


def test_frozen_weights_change_nothing_and_their_times_are_known_after_the_first_chunk(
    make_network: MakeNetwork,
) -> None:
    network = make_network()
    frozen = ChunkRollout(network, TIMES, frozen=True)
    text = [words(network)] * 4
    expected = roll_out(ChunkRollout(network, TIMES), new_cache(network), text, noise)
    assert torch.equal(roll_out(frozen, new_cache(network), text, noise), expected)
    with torch.no_grad():
        next(network.time_embedding.parameters()).mul_(2.0)
    assert torch.equal(roll_out(frozen, new_cache(network), text, noise), expected)  # as promised, not seen
    assert not torch.equal(roll_out(ChunkRollout(network, TIMES), new_cache(network), text, noise), expected)


@pytest.mark.parametrize("window", [4, 6, 7, 8, 10])
@pytest.mark.parametrize("sink_mode", ["none", "first", "ema"])
def test_a_chunk_enters_the_cache_together_with_the_next_ones_first_step(
    make_network: MakeNetwork, sink_mode: SinkMode, window: int
) -> None:
    """Over new counts of positions and changes of the text, for two streams at once."""
    network = make_network()
    rollout = ChunkRollout(network, TIMES, context_time=0.1, frozen=True)
    config = CacheConfig(window=window, chunk=2, sink=2, sink_mode=sink_mode, decay=0.6)
    together, apart = (StreamCache(network, config, batch=2, height=2, width=4) for _ in "12")
    prompts = [words(network, 1), words(network, 2)]
    merged = 0
    last = None
    for chunk in range(30):
        text = prompts[chunk // 5 % 2]
        x0, entry = rollout.denoise_after(together, last, text, lambda step, chunk=chunk: noise(chunk, step))
        if entry is not None:
            merged += 1
            together.commit(*entry)
        last = Finished(x0, text)
        expected = rollout.denoise(apart, text, lambda step, chunk=chunk: noise(chunk, step))
        torch.testing.assert_close(x0, expected, atol=1e-11, rtol=0.0)
        if chunk < 29:
            rollout.commit(apart, text, expected)
        assert together.frames_seen == 2 * chunk
    torch.testing.assert_close(together.sink, apart.sink, atol=1e-11, rtol=0.0)
    assert (merged > 15) == (config.ring_frames >= 2)
