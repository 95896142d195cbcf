"""A model folder end to end: same seed and script, same bytes; an error leaves the stream as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewstep.modalities.video.cache import StreamCache
from fewstep.modalities.video.codec import VideoCodec
from fewstep.modalities.video.model_folder import load_codec, load_transformer, save_codec, save_transformer
from fewstep.modalities.video.pipeline import Chunk, VideoModel, VideoStream, to_bytes
from fewstep.modalities.video.rollout import ChunkRollout
from fewstep.modalities.video.transformer import VideoTransformer

LEFT, RIGHT = "keep left", "keep right"
CACHE = {"window": 6, "chunk": 2, "sink": 2, "sink_mode": "ema", "decay": 0.8}
STEP_GRIDS = {"1": [1.0], "2": [1.0, 0.7]}


@pytest.fixture(scope="session")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_network: Callable[..., VideoTransformer],
    make_codec: Callable[..., VideoCodec],
) -> Path:
    """A random model of 16x32 pixels, two frames per latent frame, two latent frames per chunk."""
    folder = tmp_path_factory.mktemp("model")
    grids = {int(steps): times for steps, times in STEP_GRIDS.items()}
    network = make_network(dtype=torch.float32)
    save_transformer(folder / "student", network, training={}, metrics={}, step_grids=grids)
    save_codec(folder / "codec", make_codec(dtype=torch.float32), training={}, metrics={})
    features = {
        name: torch.randn(4, 8, generator=torch.Generator().manual_seed(len(name))) for name in (LEFT, RIGHT)
    }
    save_file({name: value.half() for name, value in features.items()}, folder / "prompts.safetensors")
    card = {
        "fps": 12,
        "height": 16,
        "width": 32,
        "cache": CACHE,
        "step_grids": STEP_GRIDS,
        "default_steps": 2,
        "default_prompt": LEFT,
        "steering": {"axes": [], "prompts": {}, "default": {}},
    }
    (folder / "pipeline.json").write_text(json.dumps(card))
    return folder


@pytest.fixture
def model(folder: Path) -> VideoModel:
    return VideoModel.load(folder, dtype=torch.float32)


def start(model: VideoModel, prompt: str = LEFT, **settings: Any) -> VideoStream:
    stream = model.stream(model.encode_prompt(prompt), **settings)
    assert isinstance(stream, VideoStream)  # decoding is not overlapped
    return stream


def video(stream: VideoStream, chunks: int) -> list[bytes]:
    return [stream.step().frames.tobytes() for _ in range(chunks)]


def test_saved_networks_come_back_with_every_weight(folder: Path, make_network: Any, make_codec: Any) -> None:
    for loaded, saved in (
        (load_transformer(folder / "student"), make_network(dtype=torch.float32)),
        (load_codec(folder / "codec"), make_codec(dtype=torch.float32)),
    ):
        assert loaded.config == saved.config
        torch.testing.assert_close(loaded.state_dict(), saved.state_dict(), atol=0.0, rtol=0.0)


def test_a_network_of_the_wrong_kind_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="holds a VideoCodec; a VideoTransformer is needed"):
        load_transformer(folder / "codec")
    with pytest.raises(ValueError, match="holds a VideoTransformer; a VideoCodec is needed"):
        load_codec(folder / "student")


def test_a_folder_says_what_it_generates(model: VideoModel) -> None:
    assert (model.fps, model.height, model.width, model.chunk_frames) == (12.0, 16, 32, 4)
    assert (model.steps_available, model.default_steps, model.default_prompt) == ((1, 2), 2, LEFT)


def test_a_step_is_one_chunk_of_frames_with_its_window(model: VideoModel) -> None:
    stream = start(model)
    chunks = [stream.step() for _ in range(5)]
    assert [chunk.index for chunk in chunks] == [0, 1, 2, 3, 4]
    assert all(chunk.frames.shape == (4, 16, 32, 3) and chunk.frames.dtype == np.uint8 for chunk in chunks)
    assert all(set(chunk.seconds) == {"denoise", "decode", "cache"} for chunk in chunks)
    assert [chunk.window.sink_frames for chunk in chunks] == [[], *[[0, 1]] * 4]
    assert [chunk.window.window_frames for chunk in chunks] == [[], [], [2, 3], [4, 5], [6, 7]]
    assert [chunk.window.evicted for chunk in chunks] == [[], [], [], [2, 3], [4, 5]]
    assert [chunk.window.drift > 1e-4 for chunk in chunks] == [False, False, False, True, True]
    assert {chunk.window.decay for chunk in chunks} == {0.8}


def test_a_static_sink_reports_that_it_stands_still(model: VideoModel) -> None:
    stream = start(model, sink_mode="first")
    last = [stream.step() for _ in range(4)][-1].window
    assert (last.decay, last.sink_frames) == (1.0, [0, 1])
    assert last.drift < 1e-6  # float32


def test_the_frames_are_those_of_one_decoding_of_all_latents(model: VideoModel) -> None:
    stream = start(model)
    chunks = [stream.step() for _ in range(4)]
    with torch.no_grad():
        whole = to_bytes(model.codec.decode(torch.cat([chunk.latents for chunk in chunks], dim=1)))[0]
    difference = whole.astype(int) - np.concatenate([chunk.frames for chunk in chunks])
    assert np.abs(difference).max() <= 1  # float32 convolutions of other sizes may round a level up or down


def test_the_same_seed_and_script_give_the_same_bytes(folder: Path) -> None:
    def script() -> list[bytes]:
        model = VideoModel.load(folder, dtype=torch.float32)
        stream = start(model, seed=5)
        before = video(stream, 3)
        stream.set_prompt(model.encode_prompt(RIGHT))
        return before + video(stream, 3)

    first = script()
    assert script() == first
    assert len(set(first)) == 6


def test_seeds_steps_sinks_and_prompts_each_make_another_video(model: VideoModel) -> None:
    variants = [
        start(model),
        start(model, seed=1),
        start(model, steps=1),
        start(model, sink_mode="none"),
        start(model, sink_mode="first"),
        start(model, decay=0.1),
        start(model, RIGHT),
    ]
    assert len({b"".join(video(stream, 4)) for stream in variants}) == len(variants)


def test_another_stream_and_other_random_numbers_in_between_change_nothing(model: VideoModel) -> None:
    alone = video(start(model, seed=3), 4)
    stream, other = start(model, seed=3), start(model, RIGHT, seed=4, steps=1)
    mixed = []
    for _ in range(4):
        torch.randn(17)
        mixed += video(stream, 1)
        video(other, 2)
    assert mixed == alone


def test_a_new_prompt_takes_effect_at_the_next_chunk_and_spares_the_past(model: VideoModel) -> None:
    steady, switched = video(start(model), 4), []
    stream = start(model)
    switched += video(stream, 2)
    past = stream.cache.state()
    stream.set_prompt(model.encode_prompt(RIGHT))
    torch.testing.assert_close(stream.cache.state(), past, atol=0.0, rtol=0.0)
    switched += video(stream, 2)
    assert [a == b for a, b in zip(steady, switched, strict=True)] == [True, True, False, False]


def test_a_prompt_set_twice_is_the_last_one(model: VideoModel) -> None:
    stream = start(model, RIGHT)
    stream.set_prompt(model.encode_prompt(LEFT))
    assert video(stream, 2) == video(start(model), 2)


def test_reset_starts_over_with_the_present_prompt(model: VideoModel) -> None:
    stream = start(model, LEFT, seed=1)
    video(stream, 4)
    stream.set_prompt(model.encode_prompt(RIGHT))
    stream.reset(2)
    assert (stream.index, stream.seed) == (0, 2)
    assert video(stream, 3) == video(start(model, RIGHT, seed=2), 3)


@pytest.mark.parametrize(
    ("owner", "method", "after"),
    [
        (VideoTransformer, "chunk_keys_values", 1),
        (VideoTransformer, "forward_chunk", 1),
        (ChunkRollout, "commit", 1),
        (StreamCache, "commit", 1),
        (VideoCodec, "decode_chunk", 1),
        (VideoTransformer, "forward_successive", 4),
        (VideoTransformer, "forward_chunk", 4),
        (StreamCache, "succession", 4),
        (VideoCodec, "decode_chunk", 4),
        (StreamCache, "commit", 4),
        (VideoStream, "_kept", 1),
        (VideoStream, "_kept", 4),
        (ChunkRollout, "unfinished", 4),
    ],
)
def test_a_step_that_fails_leaves_the_stream_as_it_was(
    model: VideoModel, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, after: int
) -> None:
    """Before the window is full, a chunk enters the cache in its own pass, then in the next one's."""
    undisturbed = video(start(model), 6)
    stream = start(model)
    assert video(stream, after) == undisturbed[:after]

    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, fail)
        for _ in range(2):
            with pytest.raises(MemoryError, match="injected"):
                stream.step()
    assert stream.index == after
    assert video(stream, 6 - after) == undisturbed[after:]


def test_refused_settings_leave_the_stream_as_it_was(model: VideoModel) -> None:
    undisturbed = video(start(model), 3)
    stream = start(model)
    video(stream, 1)
    with pytest.raises(ValueError, match="seed=-1"):
        stream.reset(-1)
    with pytest.raises(RuntimeError):
        stream.set_prompt(torch.randn(4, 5))  # of another width
    assert video(stream, 2) == undisturbed[1:]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": -1}, r"seed=-1 must lie in \[0, 2\^63\)"),
        ({"seed": 2**63}, r"seed=9223372036854775808 must lie"),
        ({"steps": 3}, "steps=3: this model was distilled to 1, 2 steps"),
        ({"decay": 1.5}, r"decay=1.5 must lie in \[0, 1\]"),
    ],
)
def test_impossible_settings_are_named(model: VideoModel, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        start(model, **settings)


def test_the_largest_seed_is_a_seed(model: VideoModel) -> None:
    assert video(start(model, seed=2**63 - 1), 1) != video(start(model, seed=2**63 - 2), 1)


def test_an_unknown_model_is_named_with_the_remedy(tmp_path: Path) -> None:
    for name in ("nowhere", str(tmp_path)):
        with pytest.raises(
            ValueError, match=r"no video model '.*': give a folder with pipeline.json, or one of"
        ):
            VideoModel.load(name)


def test_the_folders_own_prompts_need_no_text_encoder(model: VideoModel) -> None:
    def no_encoder(prompts: list[str]) -> None:
        raise AssertionError(f"asked to encode {prompts}")

    model._text = no_encoder  # pyright: ignore[reportAttributeAccessIssue]
    spaced = model.encode_prompt("  keep\n left ")
    assert torch.equal(spaced, model.encode_prompt(LEFT))
    assert (spaced.shape, spaced.dtype) == ((4, 8), torch.float32)


def test_any_other_prompt_goes_to_the_text_encoder(model: VideoModel) -> None:
    asked: list[list[str]] = []

    def encoder(prompts: list[str]) -> torch.Tensor:
        asked.append(prompts)
        return torch.ones(1, 4, 8)

    model._text = encoder  # pyright: ignore[reportAttributeAccessIssue]
    assert model.encode_prompt(" drive  home ").shape == (4, 8)
    assert asked == [["drive home"]]


@pytest.mark.parametrize(
    ("prompt", "named"), [("", "empty"), (" \n\t ", "empty"), ("x" * 2001, "2001 characters; at most 2000")]
)
def test_empty_and_oversized_prompts_are_refused(model: VideoModel, prompt: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        model.encode_prompt(prompt)


def test_bytes_are_the_nearest_levels_with_channels_last() -> None:
    pixels = torch.tensor([-2.0, -1.0, -0.5, 0.0, 1.0, 7.0]).view(1, 1, 3, 1, 2)
    assert to_bytes(pixels)[0, 0, 0].tolist() == [[0, 64, 255], [0, 128, 255]]


def test_a_chunk_is_a_record_and_not_a_view_of_the_stream(model: VideoModel) -> None:
    stream = start(model)
    chunk: Chunk = stream.step()
    frames, latents = chunk.frames.copy(), chunk.latents.clone()
    video(stream, 3)
    assert np.array_equal(chunk.frames, frames)
    assert torch.equal(chunk.latents, latents)
