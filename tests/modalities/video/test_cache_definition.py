"""The cache against the masked full forward, and against its definition written down frame by frame."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fewstep.modalities.video.cache import CacheConfig, SinkMode, StreamCache
from fewstep.modalities.video.masks import chunk_causal
from fewstep.modalities.video.transformer import VideoTransformer
from tests.modalities.video.cache_streams import (
    EXACT,
    HEIGHT,
    WIDTH,
    by_frame,
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


class Definition:
    """What a chunk sees, from the list of all frames ever seen: no ring, no slots, no running average.

    Rotation and attention are written out as well; linear layers and norms are the network's.
    """

    def __init__(self, network: VideoTransformer, config: CacheConfig, context: Tensor) -> None:
        self.network, self.config = network, config
        self.text = network.text_keys_values(context)
        self.history: list[list[Tensor]] = [[] for _ in network.blocks]
        """For each layer and frame seen, un-rotated keys and values ``[2, token, head, head_dim]``."""

    def seen(self, layer: int) -> list[Tensor]:
        """The frames of the past that the next chunk sees, in the order of their positions."""
        config, history = self.config, self.history[layer]
        sink = min(config.sink if config.sink_mode != "none" else 0, len(history))
        remembered = config.window - (config.sink if config.sink_mode != "none" else 0) - config.chunk
        oldest = max(sink, len(history) - remembered)
        frames = [history[slot] for slot in range(sink)]
        if config.sink_mode == "ema":
            for slot in range(sink):
                fused = [history[j] for j in range(sink, oldest) if j % config.sink == slot]
                n, a = len(fused), config.decay
                frames[slot] = a**n * history[slot] + (1 - a) * sum(
                    (a ** (n - i) * entry for i, entry in enumerate(fused, start=1)),
                    start=torch.zeros_like(history[slot]),
                )
        return frames + history[oldest:]

    def rotate(self, x: Tensor, frame: int) -> Tensor:
        """Interleaved pairs of one frame's ``[token, head, head_dim]``, turned as complex numbers."""
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        third = pairs.shape[-1] // 3
        sizes = (pairs.shape[-1] - 2 * third, third, third)
        turned = []
        for token, numbers in enumerate(pairs):
            place = (frame, token // (WIDTH // 2), token % (WIDTH // 2))
            angles = [p * 10_000.0 ** (-j / n) for p, n in zip(place, sizes, strict=True) for j in range(n)]
            turned.append(numbers * torch.exp(1j * torch.tensor(angles, dtype=torch.float64)))
        return torch.view_as_real(torch.stack(turned)).flatten(-2)

    def forward(self, x_t: Tensor, t: float) -> tuple[Tensor, list[Tensor]]:
        """Velocity of the next chunk, and for each layer the un-rotated keys and values of its frames."""
        network, count = self.network, x_t.shape[1]
        embedded = network.time_embedding(network._sinusoid(torch.full((1, 1), t, dtype=torch.float64)))
        modulation = network.time_projection(embedded).view(6, -1)
        x = network.patch_embedding(x_t.transpose(1, 2))[0].flatten(2).permute(1, 2, 0)  # frame token dim
        fresh = []
        blocks: list[Any] = list(network.blocks)
        for index, block in enumerate(blocks):
            shift, scale, gate, shift_f, scale_f, gate_f = block.modulation[0] + modulation
            normed = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
            own = torch.stack(tuple(block.self_attn.keys_values(normed)), 1)  # frame 2 token head head_dim
            visible = [*self.seen(index), *own]
            keys = torch.cat([self.rotate(entry[0], position) for position, entry in enumerate(visible)])
            values = torch.cat([entry[1] for entry in visible])
            queries = block.self_attn.queries(normed)
            first = len(visible) - count
            rotated = torch.cat([self.rotate(frame, first + f) for f, frame in enumerate(queries)])
            x = x + block.self_attn.o(self.attend(rotated, keys, values)).view_as(x) * gate
            queries = block.cross_attn.queries(block.norm3(x)).flatten(0, 1)
            text = self.text[index]
            x = x + block.cross_attn.o(self.attend(queries, text.keys[0], text.values[0])).view_as(x)
            normed = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale_f) + shift_f
            x = x + block.ffn(normed) * gate_f
            fresh.append(own)
        patches = network.head(x[None], embedded.expand(1, count, -1))
        return network._unpatchify(patches, HEIGHT, WIDTH), fresh

    @staticmethod
    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        logits = torch.einsum("qhd,khd->hqk", queries, keys) / queries.shape[-1] ** 0.5
        return torch.einsum("hqk,khd->qhd", logits.softmax(-1), values).flatten(1)

    def commit(self, clean: Tensor) -> None:
        for past, own in zip(self.history, self.forward(clean, 0.0)[1], strict=True):
            past.extend(own)


@examples
@given(config=configurations(("none",)), chunks=st.integers(1, 6))
def test_without_sink_the_cached_rollout_is_the_masked_full_forward(
    make_network: MakeNetwork, config: CacheConfig, chunks: int
) -> None:
    network = make_network()
    context, text = prompt(network)
    clean = clip(chunks * config.chunk)
    mask = chunk_causal(clean.shape[1], chunk=config.chunk, window=config.window)
    with torch.no_grad():
        expected = network(clean, time(0.0), context, frame_mask=mask)
        cache = new_cache(network, config)
        for index, chunk in enumerate(clean.split(config.chunk, 1)):
            velocity, fresh = network.forward_chunk(
                chunk, time(0.0), text, past=cache.past(), position=cache.position
            )
            cache.commit(fresh, config.chunk)
            own = slice(index * config.chunk, (index + 1) * config.chunk)
            torch.testing.assert_close(velocity, expected[:, own], **EXACT)


@examples
@given(config=configurations(("first", "ema")), later=st.integers(-2, 3))
@example(CacheConfig(window=7, chunk=2, sink=3, decay=0.6), 2)
@example(CacheConfig(window=6, chunk=3, sink=3, decay=0.5), 2)
@example(CacheConfig(window=5, chunk=1, sink=2, sink_mode="first"), 2)
def test_the_cached_rollout_is_the_definition_for_any_window_sink_and_length(
    make_network: MakeNetwork, config: CacheConfig, later: int
) -> None:
    chunks = max(1, -(-config.window // config.chunk) + later)  # mostly beyond the window
    network = make_network()
    with torch.no_grad():
        definition = Definition(network, config, prompt(network)[0])
        for index, velocity in enumerate(stream(network, config, chunks)[0]):
            expected = definition.forward(clip(config.chunk, index), 0.7)[0]
            torch.testing.assert_close(velocity, expected, **EXACT)
            definition.commit(clip(config.chunk, 500 + index))


@pytest.mark.parametrize("wrong", [{"decay": 0.79}, {"window": 8}, {"sink_mode": "first"}])
def test_a_definition_that_is_slightly_wrong_is_told_apart(
    make_network: MakeNetwork, wrong: dict[str, Any]
) -> None:
    network = make_network()
    config = {"window": 7, "chunk": 2, "sink": 2, "sink_mode": "ema", "decay": 0.8}
    with torch.no_grad():
        right = stream(network, CacheConfig(**config), 6)[0]
        other = stream(network, CacheConfig(**{**config, **wrong}), 6)[0]
    assert (right[-1] - other[-1]).abs().max() > 1e-5


@examples
@given(chunk=st.integers(1, 3), sink=st.integers(1, 4), past=st.integers(0, 4), chunks=st.integers(1, 7))
def test_decay_one_is_a_static_sink_to_the_last_bit(
    make_network: MakeNetwork, chunk: int, sink: int, past: int, chunks: int
) -> None:
    network = make_network()
    sizes: dict[str, Any] = {"window": chunk + sink + past, "chunk": chunk, "sink": sink}
    with torch.no_grad():
        ema, ema_cache = stream(network, CacheConfig(**sizes, sink_mode="ema", decay=1.0), chunks)
        first, first_cache = stream(network, CacheConfig(**sizes, sink_mode="first"), chunks)
    assert all(torch.equal(a, b) for a, b in zip(ema, first, strict=True))
    assert torch.equal(ema_cache.sink, first_cache.sink)


@examples
@given(chunk=st.integers(1, 3), ring_chunks=st.integers(0, 2), chunks=st.integers(1, 7))
def test_decay_zero_with_sink_equal_to_chunk_is_a_plain_sliding_window(
    make_network: MakeNetwork, chunk: int, ring_chunks: int, chunks: int
) -> None:
    network = make_network()
    sizes: dict[str, Any] = {"window": (2 + ring_chunks) * chunk, "chunk": chunk, "sink": chunk}
    with torch.no_grad():
        replaced = stream(network, CacheConfig(**sizes, sink_mode="ema", decay=0.0), chunks)[0]
        sliding = stream(network, CacheConfig(**sizes, sink_mode="none"), chunks)[0]
    for a, b in zip(replaced, sliding, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def after_a_long_stream(
    network: VideoTransformer, config: CacheConfig, chunks: int, refreshes: Callable[[int], bool]
) -> tuple[StreamCache, Definition]:
    """Both after so many chunks of any keys and values, the window read anew after some of them."""
    cache, definition = new_cache(network, config), Definition(network, config, prompt(network)[0])

    def commit(frames: int, seed: int) -> None:
        fresh = entries(network, frames, seed=seed)
        cache.commit(fresh, frames)
        for frame in by_frame(fresh, frames):
            for history, entry in zip(definition.history, frame, strict=True):
                history.append(entry[:, 0])

    for index in range(chunks):
        commit(config.chunk, index % 101)
        if refreshes(index):
            count = cache.forget_ring()
            for history in definition.history:
                del history[len(history) - count :]
            for number, frames in enumerate(
                [count % config.chunk, *[config.chunk] * (count // config.chunk)]
            ):
                if frames:
                    commit(frames, 1000 + (index + number) % 103)
    return cache, definition


def assert_defined(network: VideoTransformer, cache: StreamCache, definition: Definition) -> None:
    look, text = clip(cache.config.chunk, 9), prompt(network)[1]
    seen = network.forward_chunk(look, time(0.7), text, past=cache.past(), position=cache.position)[0]
    torch.testing.assert_close(seen, definition.forward(look, 0.7)[0], **EXACT)


@examples
@given(
    config=configurations(("none", "first", "ema")),
    refreshes=st.lists(st.booleans(), min_size=1, max_size=9),
)
def test_a_window_read_anew_at_any_time_is_the_definition_with_other_frames(
    make_network: MakeNetwork, config: CacheConfig, refreshes: list[bool]
) -> None:
    network = make_network()
    assert_defined(network, *after_a_long_stream(network, config, len(refreshes), refreshes.__getitem__))


@pytest.mark.parametrize(
    ("window", "sink", "mode"),
    [(9, 3, "ema"), (10, 2, "ema"), (6, 3, "ema"), (11, 4, "first"), (8, 0, "none")],
)
def test_after_thousands_of_frames_and_refreshes_a_chunk_sees_what_the_definition_says(
    make_network: MakeNetwork, window: int, sink: int, mode: SinkMode
) -> None:
    """Positions were counted anew dozens of times, and the ring went round hundreds of times."""
    network = make_network()
    config = CacheConfig(window=window, chunk=3, sink=sink, sink_mode=mode, decay=0.97)
    cache, definition = after_a_long_stream(network, config, 700, lambda index: index % 37 == 5)
    assert cache.frames_seen == len(definition.history[0]) == 2100
    assert_defined(network, cache, definition)
    definition.history[0][-1] = definition.history[0][-1] + 1e-3  # must fail: the last frame is seen
    with pytest.raises(AssertionError):
        assert_defined(network, cache, definition)
