"""Two gloo processes that share a chunk's tokens make what one process makes."""

from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from fewstep.modalities.video import sequence_parallel
from fewstep.modalities.video.acceleration import Acceleration
from fewstep.modalities.video.blocks import KeysValues, Past
from fewstep.modalities.video.codec import VideoCodec
from fewstep.modalities.video.decoder_device import CodecOn, decode_on
from fewstep.modalities.video.parts import Parts
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.sequence_parallel import Shards, SharedPast, share_out
from fewstep.modalities.video.streaming_codec import StreamingCodec
from fewstep.modalities.video.transformer import VideoTransformer

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

Made = tuple[list[Tensor], list[tuple[int, ...]]]
Build = Callable[..., VideoModel]
PROCESSES = run_path(str(Path(__file__).parents[2] / "core" / "training" / "processes.py"))
WORDS, FEATURES, CHUNKS = 4, 8, 6


def words(prompts: list[str]) -> Tensor:
    """Random features of whole prompts."""
    generator = torch.Generator().manual_seed(len(prompts[0]))
    return torch.randn(1, WORDS, FEATURES, generator=generator, dtype=torch.float64)


@pytest.fixture
def build(make_network: Callable[..., VideoTransformer], make_codec: Callable[..., VideoCodec]) -> Build:
    """A random model in float64 that forgets from its fourth chunk on; frames have 4 tokens, 2 rows of 2."""

    def make(acceleration: Acceleration = Acceleration(), *, width: int = 32, **cache: Any) -> VideoModel:  # noqa: B008 - frozen
        window = {"window": 6, "chunk": 2, "sink": 2, "sink_mode": "ema", "decay": 0.8, **cache}
        card = {"fps": 12, "height": 32, "width": width, "cache": window, "step_grids": {"2": [1.0, 0.7]}}
        card |= {"default_steps": 2, "default_prompt": "ahead"}
        parts = Parts(card=card, student=make_network(), codec=make_codec(), text=words)
        return VideoModel(Path(), dtype=torch.float64, parts=parts, acceleration=acceleration)

    return make


def streamed(model: VideoModel, *, begin: bool = False) -> Made:
    """Latents of some chunks, with a new prompt and the window read again under it; and shapes of frames."""
    stream = model.stream(model.encode_prompt("ahead"), seed=5)
    latents, frames = [], []
    if begin:
        picture = np.random.default_rng(0).integers(0, 255, (1, model.height, model.width, 3), np.uint8)
        frames.append(stream.begin_from(model.encode_start(picture)).shape)
    for number in range(CHUNKS):
        if number == 4:
            stream.set_prompt(model.encode_prompt("to the left"), refresh=True)
        chunk = stream.step()
        latents.append(chunk.latents.clone())
        frames.append(chunk.frames.shape)
    return latents, frames


def together(rank: int, model: VideoModel, options: dict[str, Any]) -> Made:
    dist.init_process_group("gloo", rank=rank, world_size=2)
    share_out(model)
    return streamed(model, **options)


def from_two(model: VideoModel, run: Callable[..., Made] = together, **options: Any) -> list[Made]:
    return PROCESSES["in_two_processes"](run, model, options)


@pytest.mark.parametrize(
    ("acceleration", "cache", "options"),
    [
        (Acceleration(), {}, {}),
        (Acceleration(static_steps=True), {"sink_mode": "first", "sink_position": "fixed"}, {}),
        (Acceleration(cache_from="last_step"), {"sink_mode": "none"}, {}),
        (Acceleration(), {"window": 4}, {"begin": True}),
    ],
    ids=["ema sink", "static steps, fixed sink", "last step, no sink", "no ring, from a picture"],
)
def test_two_processes_make_the_chunks_of_one(
    build: Build, acceleration: Acceleration, cache: dict[str, Any], options: dict[str, Any]
) -> None:
    expected, shapes = streamed(build(acceleration, **cache), **options)
    first, second = from_two(build(acceleration, **cache), **options)
    for latents, _ in (first, second):
        for found, wanted in zip(latents, expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)  # float64, products regrouped
    assert first[1] == shapes
    assert [shape[0] for shape in second[1]] == [shape[0] for shape in shapes]
    assert {shape[1:] for shape in second[1]} == {(1, 1, 3)}  # nobody looks at them


def apart(rank: int, model: VideoModel, options: dict[str, Any]) -> Made:
    """As ``together``, but nobody hears of the others' present tokens."""
    SharedPast.followed_by = Past.followed_by
    return together(rank, model, options)


def test_tokens_that_do_not_meet_make_another_video(build: Build) -> None:
    expected = streamed(build())[0]
    latents = from_two(build(), apart)[0][0]
    assert (latents[0] - expected[0]).abs().max() > 1e-3


def disordered(rank: int, model: VideoModel, options: dict[str, Any]) -> Made:
    """As ``together``, but tokens are in the order of processes before that of frames."""
    right = Shards.whole_frames

    def whole_frames(self: Shards, part: KeysValues, frames: int) -> KeysValues:
        return right(self, part, 1)

    Shards.whole_frames = whole_frames
    return together(rank, model, options)


def test_tokens_in_another_order_are_seen_alike_and_remembered_wrongly(build: Build) -> None:
    expected = streamed(build())[0]
    latents = from_two(build(), disordered)[0][0]
    torch.testing.assert_close(latents[0], expected[0], atol=1e-10, rtol=1e-10)
    assert (latents[1] - expected[1]).abs().max() > 1e-3


def test_what_cannot_be_shared_out_is_named(build: Build) -> None:
    with pytest.raises(AssertionError, match="6 tokens of a frame do not divide among 4 processes"):
        from_two(build(width=48), in_four)
    model = build()
    model.acceleration = Acceleration(static_steps=True, compiled=True)
    with pytest.raises(ValueError, match="compiled is for one process"):
        share_out(model)


def in_four(rank: int, model: VideoModel, options: dict[str, Any]) -> Made:
    """Two processes that take themselves for half of four."""

    class OfFour(Shards):
        def __init__(self, group: object = None) -> None:
            super().__init__()
            self.size = 4

    sequence_parallel.Shards = OfFour  # pyright: ignore[reportAttributeAccessIssue]
    return together(rank, model, options)


def test_a_decoder_elsewhere_gets_its_latents_there_and_makes_the_same_frames(build: Build) -> None:
    expected, shapes = streamed(build(), begin=True)
    model = build()
    decode_on(model, "cpu")
    assert isinstance(model.codec, CodecOn)
    assert isinstance(model.codec, StreamingCodec)
    latents, frames = streamed(model, begin=True)
    assert frames == shapes
    assert all(torch.equal(*pair) for pair in zip(latents, expected, strict=True))

    far = build()
    near = far.codec
    decode_on(far, "meta")  # a device that this machine has, and whose tensors mix with no others
    assert isinstance(near, nn.Module)
    assert all(parameter.is_meta for parameter in near.parameters())
    pixels, memory = far.codec.decode_chunk(expected[0], far.codec.memory(1, 4, 4))
    assert pixels.is_meta
    assert pixels.shape[1] == shapes[1][0]
    assert all(tensor.is_meta for tensor in memory)
    assert far.codec.decode(expected[0]).is_meta
