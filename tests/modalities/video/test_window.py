"""What a stream can do with its window: fixed sinks, a refresh under a new prompt, a start from frames."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.modalities.video.cache import MOST_FIXED, CacheConfig, StreamCache
from fewstep.modalities.video.codec import VideoCodec
from fewstep.modalities.video.pipeline import VideoStream
from fewstep.modalities.video.rollout import ChunkRollout
from fewstep.modalities.video.transformer import VideoTransformer

MakeNetwork = Callable[..., VideoTransformer]
SIZE = (4, 6)  # of latents
WINDOW: dict[str, Any] = {"window": 8, "chunk": 2, "sink": 2, "sink_mode": "first"}


def clip(frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, frames, 4, *SIZE, generator=generator, dtype=torch.float64)


def words(seed: int) -> Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def committed(network: VideoTransformer, config: CacheConfig, x: Tensor, text: Tensor) -> StreamCache:
    cache = StreamCache(network, config, batch=1, height=SIZE[0], width=SIZE[1])
    rollout = ChunkRollout(network, (1.0,))
    for part in x.split(config.chunk, dim=1):
        rollout.commit(cache, network.text_keys_values(text[None]), part)
    return cache


def velocity(network: VideoTransformer, cache: StreamCache, x: Tensor, text: Tensor) -> Tensor:
    t = torch.full((1, x.shape[1]), 0.7)
    texts = network.text_keys_values(text[None])
    with torch.no_grad():
        return network.forward_chunk(x, t, texts, past=cache.past(), position=cache.position)[0]


def sink_mask(frames: int, config: CacheConfig) -> Tensor:
    """Chunks see the sink, the window before them, and themselves."""
    index = torch.arange(frames)
    end = (index // config.chunk + 1) * config.chunk
    inside = index[None] >= end[:, None] - (config.window - config.sink)
    return (index[None] < end[:, None]) & (inside | (index[None] < config.sink))


@pytest.mark.parametrize("chunks", [2, 5, 9, 21])
def test_a_fixed_sink_stands_where_the_first_frames_stood(make_network: MakeNetwork, chunks: int) -> None:
    """LongLive keeps keys rotated at their absolute place: the masked forward pass over all frames."""
    network, config = make_network(), CacheConfig(**WINDOW, sink_position="fixed")
    x, text = clip(2 * chunks), words(1)
    cache = committed(network, config, x[:, :-2], text)
    t = torch.zeros(1, 2 * chunks)
    t[:, -2:] = 0.7
    with torch.no_grad():
        whole = network(x, t, text[None], frame_mask=sink_mask(2 * chunks, config))[:, -2:]
    found = velocity(network, cache, x[:, -2:], text)
    torch.testing.assert_close(found, whole, atol=1e-9, rtol=0.0)  # float64
    moving = committed(network, CacheConfig(**WINDOW), x[:, :-2], text)
    differs = (velocity(network, moving, x[:, -2:], text) - whole).abs().max() > 1e-6
    assert differs == (chunks > 4)  # the two agree until the first frame has left the window


def test_a_fixed_sink_ends_where_wans_positions_do(make_network: MakeNetwork) -> None:
    network = make_network()
    cache = committed(network, CacheConfig(**WINDOW, sink_position="fixed"), clip(4), words(1))
    cache.frames_seen = MOST_FIXED - 2
    cache._is_current = False
    cache.past()
    cache.frames_seen, cache._is_current = MOST_FIXED - 1, False
    with pytest.raises(ValueError, match="ends at 1024 latent frames; reset the stream"):
        cache.past()


def test_an_unknown_position_is_named() -> None:
    config = CacheConfig()
    object.__setattr__(config, "sink_position", "nowhere")  # the tests' type checks stop it earlier
    with pytest.raises(ValueError, match="sink_position='nowhere': use 'moving' or 'fixed'"):
        config.__post_init__()


@pytest.fixture
def make_stream(
    make_network: MakeNetwork, make_codec: Callable[..., VideoCodec]
) -> Callable[..., VideoStream]:
    network, codec = make_network(), make_codec()

    def make(prompt: int = 1, *, refresh: bool = False, **window: Any) -> VideoStream:
        rollout = ChunkRollout(network, (1.0, 0.6), frozen=True)
        config = CacheConfig(**{**WINDOW, **window})
        size = {"height": 8 * SIZE[0], "width": 8 * SIZE[1]}
        stream = VideoStream(rollout, codec, config, words(prompt), seed=3, refresh=refresh, **size)
        stream._noise = lambda step: clip(2, seed=100 * stream.index + step)  # in float64
        return stream

    return make


@pytest.mark.parametrize("chunks", [1, 3, 4])
def test_a_refresh_under_the_same_prompt_changes_nothing_while_nothing_was_forgotten(
    make_stream: Callable[..., VideoStream], chunks: int
) -> None:
    steady, refreshed = make_stream(), make_stream()
    for _ in range(chunks):
        steady.step()
        refreshed.step()
    refreshed.set_prompt(words(1), refresh=True)
    for _ in range(3):
        torch.testing.assert_close(refreshed.step().latents, steady.step().latents, atol=1e-9, rtol=0.0)


@pytest.mark.parametrize("chunks", [2, 4, 7, 8])
def test_a_refreshed_window_is_that_of_a_stream_that_always_had_the_new_prompt(
    make_stream: Callable[..., VideoStream], chunks: int
) -> None:
    """The same latents, read chunk by chunk after the same sink under the new prompt."""
    stream = make_stream()
    made = [stream.step().latents for _ in range(chunks)]
    in_cache = torch.cat(made[:-1], dim=1)
    sink = stream.cache.sink
    stream.set_prompt(words(2), refresh=True)
    network, cache = stream._rollout.network, stream.cache
    count = len(cache.window_ids)
    assert count == max(0, min(4, in_cache.shape[1] - 2))
    torch.testing.assert_close(cache.sink, sink, atol=0.0, rtol=0.0)

    keys = sink[:, :, :, :2].flatten(3, 4)
    text = network.text_keys_values(words(2)[None])
    for index in range(count // 2):
        first = in_cache.shape[1] - count + 2 * index
        part = in_cache[:, first : first + 2]
        # positions count from the sink: only distances matter
        rotation = network.rotation(range(2 + 2 * index), *SIZE)
        past = [type(text[0])(_rotated(layer[0], rotation), layer[1]) for layer in keys]
        fresh = network.chunk_keys_values(part, torch.zeros(1, 2), text, past=past, position=2 + 2 * index)
        keys = torch.cat([keys, torch.stack([torch.stack(layer) for layer in fresh])], dim=3)
    ring = cache._ring[:, :, :, [cache._slot(frame) for frame in cache.window_ids]].flatten(3, 4)
    torch.testing.assert_close(ring, keys[:, :, :, 2 * 6 :], atol=1e-9, rtol=0.0)


def _rotated(keys: Tensor, rotation: Tensor) -> Tensor:
    from fewstep.modalities.video.rotary import rotate

    return rotate(keys, rotation)


def test_with_refresh_the_new_prompt_shows_at_once_and_more(make_stream: Callable[..., VideoStream]) -> None:
    streams = [make_stream(), make_stream(), make_stream(refresh=True)]
    for stream in streams:
        for _ in range(6):
            stream.step()
    streams[1].set_prompt(words(2))
    streams[2].set_prompt(words(2))  # the model's own way is to refresh
    steady, kept, refreshed = (stream.step().latents for stream in streams)
    assert (kept - steady).abs().max() > 1e-3
    assert (refreshed - kept).abs().max() > 1e-3


def test_a_refresh_before_the_first_chunk_is_only_the_prompt(make_stream: Callable[..., VideoStream]) -> None:
    stream = make_stream()
    stream.set_prompt(words(2), refresh=True)
    torch.testing.assert_close(stream.step().latents, make_stream(2).step().latents, atol=0.0, rtol=0.0)


def failing_at(number: int, right: Callable[..., Any]) -> Callable[..., Any]:
    """In the place of ``right``: its call of this number, counted from 0, runs out of memory."""
    calls: list[None] = []

    def work(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) > number:
            raise MemoryError("injected")
        return right(*args, **kwargs)

    return work


def assert_same_to_the_last_bit(found: VideoStream, expected: VideoStream) -> None:
    for _ in range(3):
        one, other = found.step(), expected.step()
        assert torch.equal(one.latents, other.latents)
        assert one.frames.tobytes() == other.frames.tobytes()
        assert (one.index, one.window) == (other.index, other.window)


@pytest.mark.parametrize("chunks", [4, 7, 8])
@pytest.mark.parametrize("number", [0, 1])
def test_a_refresh_that_fails_leaves_the_stream_as_it_was(
    make_stream: Callable[..., VideoStream], monkeypatch: pytest.MonkeyPatch, chunks: int, number: int
) -> None:
    streams = steady, stream = make_stream(), make_stream()
    for _ in range(chunks):
        for one in streams:
            one.step()
    with monkeypatch.context() as patch:
        patch.setattr(ChunkRollout, "commit", failing_at(number, ChunkRollout.commit))
        with pytest.raises(MemoryError, match="injected"):
            stream.set_prompt(words(2), refresh=True)
    assert_same_to_the_last_bit(stream, steady)


@pytest.mark.parametrize("chunks", [7, 8])
@pytest.mark.parametrize(
    ("owner", "method"), [(VideoTransformer, "forward_chunk"), (VideoCodec, "decode_chunk")]
)
def test_a_refresh_before_a_step_that_fails_is_taken_back_to_the_last_bit(
    make_stream: Callable[..., VideoStream],
    monkeypatch: pytest.MonkeyPatch,
    chunks: int,
    owner: type,
    method: str,
) -> None:
    streams = steady, stream, set_back = make_stream(), make_stream(), make_stream()
    for _ in range(chunks):
        for one in streams:
            one.step()
    undo = stream.set_prompt(words(2), refresh=True)
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, failing_at(0, getattr(owner, method)))
        with pytest.raises(MemoryError, match="injected"):
            stream.step()
    undo()
    set_back.set_prompt(words(2), refresh=True)
    set_back.set_prompt(words(1), refresh=True)  # the control: that is not the same
    assert not torch.equal(set_back.cache.state()["ring"], stream.cache.state()["ring"])
    assert_same_to_the_last_bit(stream, steady)


def test_once_a_chunk_is_made_only_the_prompt_is_taken_back(make_stream: Callable[..., VideoStream]) -> None:
    undone, switched = make_stream(), make_stream()
    for stream in (undone, switched):
        for _ in range(5):
            stream.step()
    undo = undone.set_prompt(words(2), refresh=True)
    switched.set_prompt(words(2), refresh=True)
    assert torch.equal(undone.step().latents, switched.step().latents)
    undo()
    switched.set_prompt(words(1), refresh=False)
    assert_same_to_the_last_bit(undone, switched)


@pytest.mark.parametrize("chunks", [1, 2, 5])
def test_a_stream_begun_from_its_own_latents_goes_on_as_if_it_had_made_them(
    make_stream: Callable[..., VideoStream], chunks: int
) -> None:
    whole, continued = make_stream(), make_stream()
    made = [whole.step() for _ in range(chunks)]
    frames = continued.begin_from(torch.cat([chunk.latents for chunk in made], dim=1))
    difference = frames.astype(int) - np.concatenate([chunk.frames for chunk in made])
    assert np.abs(difference).max() <= 1  # rounding of a level
    continued._noise = lambda step: clip(2, seed=100 * (continued.index + chunks) + step)
    for _ in range(3):
        expected, found = whole.step(), continued.step()
        torch.testing.assert_close(found.latents, expected.latents, atol=1e-9, rtol=0.0)
        assert np.abs(found.frames.astype(int) - expected.frames).max() <= 1


def test_a_start_that_does_not_fit_is_named(make_stream: Callable[..., VideoStream]) -> None:
    stream = make_stream()
    with pytest.raises(ValueError, match="are no chunks of this stream"):
        stream.begin_from(clip(3))
    stream.step()
    with pytest.raises(ValueError, match="the stream has begun; reset it"):
        stream.begin_from(clip(2))
    stream.reset(3)
    assert len(stream.begin_from(clip(2))) == 4
