"""The cache against the masked full forward, and against its definition written down frame by frame."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fewstep.modalities.video.blocks import KeysValues
from fewstep.modalities.video.cache import MOST_WINDOWS, CacheConfig, StreamCache
from fewstep.modalities.video.masks import chunk_causal
from fewstep.modalities.video.rollout import ChunkRollout
from fewstep.modalities.video.transformer import VideoTransformer

MakeNetwork = Callable[..., VideoTransformer]

HEIGHT, WIDTH, TOKENS = 2, 4, 2  # latent pixels, and tokens of a frame
EXACT: dict[str, Any] = {"atol": 1e-10, "rtol": 0.0}  # float64 through two layers; observed 1e-14

examples = settings(deadline=None, derandomize=True, max_examples=20)


def clip(frames: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, frames, 4, HEIGHT, WIDTH, generator=generator).to(dtype)


def time(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def prompt(network: VideoTransformer) -> tuple[Tensor, list[KeysValues]]:
    context = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(7)).to(network.dtype)
    return context, network.text_keys_values(context)


def new_cache(network: VideoTransformer, config: CacheConfig) -> StreamCache:
    return StreamCache(network, config, batch=1, height=HEIGHT, width=WIDTH)


def stream(
    network: VideoTransformer, config: CacheConfig, chunks: int, *, seed: int = 0
) -> tuple[list[Tensor], StreamCache]:
    """Velocities of noised chunks over the cache, each chunk then committed clean."""
    cache, text = new_cache(network, config), prompt(network)[1]
    rollout = ChunkRollout(network, (1.0,))
    velocities = []
    for index in range(chunks):
        noised, clean = clip(config.chunk, 1000 * seed + index), clip(config.chunk, 1000 * seed + 500 + index)
        velocities.append(
            network.forward_chunk(noised, time(0.7), text, past=cache.past(), position=cache.position)[0]
        )
        rollout.commit(cache, text, clean)
    return velocities, cache


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


@st.composite
def configurations(draw: st.DrawFn, modes: tuple[str, ...]) -> CacheConfig:
    chunk, sink = draw(st.integers(1, 3)), draw(st.integers(0, 4))
    mode = draw(st.sampled_from(modes))
    least = chunk + (0 if mode == "none" else sink)
    return CacheConfig(
        window=least + draw(st.integers(0, 5)),
        chunk=chunk,
        sink=sink,
        sink_mode=mode,  # pyright: ignore[reportArgumentType]
        decay=draw(st.floats(0.0, 1.0)),
    )


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


def entries(network: VideoTransformer, frames: int, seed: int) -> list[KeysValues]:
    """Keys and values as a forward pass would leave them."""
    sizes, generator = network.config, torch.Generator().manual_seed(seed)
    shape = (2, 1, frames * TOKENS, sizes.num_heads, sizes.head_dim)
    return [
        KeysValues(*torch.randn(shape, generator=generator).to(network.dtype))
        for _ in range(sizes.num_layers)
    ]


def by_frame(fresh: list[KeysValues], frames: int) -> Tensor:
    """``[frame, layer, 2, batch, token, head, head_dim]``"""
    stacked = torch.stack([torch.stack(tuple(layer)) for layer in fresh])
    return stacked.unflatten(3, (frames, -1)).movedim(3, 0)


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
    assert all(bool(layer.keys.isfinite().all()) for layer in cache.past() or [])


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


def fused(cache_dtype_frames: list[Tensor], decay: float, dtype: torch.dtype) -> Tensor:
    """The running average of a list of frames, kept in ``dtype``."""
    sink = cache_dtype_frames[0].to(dtype)
    for entry in cache_dtype_frames[1:]:
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
