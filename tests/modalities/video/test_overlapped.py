"""Decoding beside denoising: the same frames in the same order, and no chunk lost to an error."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.modalities.video.acceleration import SWITCHES
from fewstep.modalities.video.codec import VideoCodec
from fewstep.modalities.video.overlapped import OverlappedStream
from fewstep.modalities.video.pipeline import VideoModel, VideoStream
from fewstep.modalities.video.transformer import VideoTransformer

MakeModel = Callable[..., VideoModel]


def words(sign: float = 1.0) -> torch.Tensor:
    return sign * torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(make_model: MakeModel) -> VideoModel:
    return make_model(SWITCHES["default"])


def overlapped(model: VideoModel, seed: int = 0) -> OverlappedStream:
    stream = model.stream(words(), seed=seed)
    assert isinstance(stream, VideoStream)
    return OverlappedStream(stream)


def video(stream: VideoStream | OverlappedStream, chunks: int) -> list[bytes]:
    return [stream.step().frames.tobytes() for _ in range(chunks)]


def test_frames_and_windows_are_those_of_the_serial_order(model: VideoModel) -> None:
    serial, stream = model.stream(words()), overlapped(model)
    for index in range(10):
        expected, found = serial.step(), stream.step()
        assert found.frames.tobytes() == expected.frames.tobytes()
        assert torch.equal(found.latents, expected.latents)
        assert found.window == expected.window
        assert found.index == expected.index == index
        assert stream.index == index + 1


def test_a_chunk_is_decoded_while_the_next_one_is_denoised(
    model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the other to have begun: one after the other would never end."""
    stream = overlapped(model)
    video(stream, 1)
    begun = {"decode": threading.Event(), "denoise": threading.Event()}
    threads = {}

    def meeting(name: str, other: str, work: Callable) -> Callable:
        def begin(*args: object, **kwargs: object) -> object:
            threads[name] = threading.current_thread()
            begun[name].set()
            assert begun[other].wait(30), f"{other} did not begin"
            return work(*args, **kwargs)

        return begin

    monkeypatch.setattr(VideoCodec, "decode_chunk", meeting("decode", "denoise", VideoCodec.decode_chunk))
    monkeypatch.setattr(
        VideoTransformer, "forward_chunk", meeting("denoise", "decode", VideoTransformer.forward_chunk)
    )
    stream.step()
    assert threads["denoise"] is threading.current_thread()
    assert threads["decode"].name.startswith("decode")


def test_frames_are_delivered_while_the_next_chunk_is_denoised(
    model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next chunk's denoising ends only when the delivery has ended: in turn they would never end."""
    stream = overlapped(model)
    video(stream, 1)
    delivered = threading.Event()
    shown: list[np.ndarray] = []

    def deliver(frames: np.ndarray) -> None:
        shown.append(frames)
        delivered.set()

    def denoise(*args: Any, **kwargs: Any) -> object:
        assert delivered.wait(30), "nothing was delivered meanwhile"
        return forward(*args, **kwargs)

    forward = VideoTransformer.forward_chunk
    monkeypatch.setattr(VideoTransformer, "forward_chunk", denoise)
    chunk = stream.step(deliver)
    assert len(shown) == 1
    assert shown[0] is chunk.frames


@pytest.mark.parametrize("how", [VideoStream, OverlappedStream])
@pytest.mark.parametrize("after", [0, 3])
def test_a_delivery_that_fails_loses_no_chunk(model: VideoModel, how: type, after: int) -> None:
    undisturbed = video(model.stream(words()), 6)
    stream = overlapped(model) if how is OverlappedStream else model.stream(words())
    assert video(stream, after) == undisturbed[:after]

    def fail(frames: np.ndarray) -> None:
        raise MemoryError("injected")

    for _ in range(2):
        with pytest.raises(MemoryError, match="injected"):
            stream.step(fail)
    assert stream.index == after
    shown: list[bytes] = []
    for _ in range(6 - after):
        stream.step(lambda frames: shown.append(frames.tobytes()))
    assert shown == undisturbed[after:]


@pytest.mark.parametrize(
    ("owner", "method"), [(VideoCodec, "decode_chunk"), (VideoTransformer, "forward_chunk")]
)
@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_error_comes_to_the_caller_and_loses_no_chunk(
    model: VideoModel, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, after: int
) -> None:
    undisturbed = video(model.stream(words()), 7)
    stream = overlapped(model)
    assert video(stream, after) == undisturbed[:after]

    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, fail)
        for _ in range(3):
            with pytest.raises(MemoryError, match="injected"):
                stream.step()
    assert stream.index == after
    assert video(stream, 7 - after) == undisturbed[after:]


def test_a_new_prompt_shows_one_chunk_later(model: VideoModel) -> None:
    serial, stream = model.stream(words()), overlapped(model)
    expected, found = video(serial, 4), video(stream, 3)
    serial.set_prompt(words(-1.0))
    stream.set_prompt(words(-1.0))
    expected, found = expected + video(serial, 3), found + video(stream, 4)
    assert found == expected


def test_reset_and_a_start_from_frames_forget_what_was_made_ahead(model: VideoModel) -> None:
    stream = overlapped(model, seed=1)
    video(stream, 3)
    stream.reset(2)
    assert (stream.seed, stream.index) == (2, 0)
    assert video(stream, 3) == video(model.stream(words(), seed=2), 3)

    latents = torch.randn(1, 4, 4, 2, 4)
    begun, serial = overlapped(model), model.stream(words())
    assert (begun.begin_from(latents) == serial.begin_from(latents)).all()
    assert video(begun, 3) == video(serial, 3)


@pytest.mark.gpu
def test_on_a_gpu_frames_are_those_of_the_serial_order() -> None:
    model = VideoModel.load("driving", device="cuda")
    features = model.encode_prompt(model.default_prompt)
    serial, stream = (model.stream(features) for _ in "12")
    assert isinstance(stream, VideoStream)
    assert video(OverlappedStream(stream), 20) == video(serial, 20)
