"""What may go wrong, cause by cause: what is told, what goes on, and that nothing is half done.

Engines killed, hung and out of memory are in test_engine_process, sockets and signals in apps/test_faults.
"""

import asyncio
import errno
import itertools
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.modalities.video.cache import StreamCache
from fewstep.modalities.video.pipeline import VideoModel, VideoStream
from fewstep.modalities.video.rollout import ChunkRollout
from fewstep.modalities.video.transformer import VideoTransformer
from fewstep.streaming import encoding as encoding_module
from fewstep.streaming import h264
from fewstep.streaming import service as service_module
from fewstep.streaming.archive import Archive
from fewstep.streaming.engine_process import EngineProcess, ModelSource, Patience
from fewstep.streaming.host import Control, EngineHost, Recorded
from fewstep.streaming.journal import locked
from fewstep.streaming.recording import Recorder, count_frames, journal_of, new_name, part_of
from fewstep.streaming.room import EngineRoom
from fewstep.streaming.service import StreamService
from fewstep.streaming.takes import Restart, Start
from fewstep.streaming.worker import describe_error
from tests.waiting import run, until

DAY_SECONDS = 86_400
JPEG_BEGINS = b"\xff\xd8"
LEFT, RIGHT = "left on a meadow", "right in the snow"
BEGIN = {"metadata": {"title": "x"}, "script": {"seed": 1, "steps": 1, "sink": "ema", "cues": []}}
FIRST = Control(restart=Restart(seed=3, steps=2, sink="ema"), prompt=LEFT)
SWITCHED_AT, CHUNKS = 5, 8
FULL_AFTER = 4
"""Chunks until the window is full; before, a chunk enters the cache when the next one begins."""
ON_THE_WAY = (
    (ChunkRollout, "denoise_after", 1),
    (StreamCache, "commit", 1),
    (StreamCache, "commit", 6),
    (VideoStream, "_noise", 1),
    (VideoTransformer, "forward_chunk", 1),
    (VideoStream, "_noise", 6),
)


# a failed step, in a real model


def loaded(model: VideoModel) -> EngineHost:
    host = EngineHost(lambda: model)
    host.load()
    return host


def controls(count: int) -> list[Control]:
    """A take with one switch of the prompt."""
    switch = {0: FIRST, SWITCHED_AT: Control(prompt=RIGHT)}
    return [switch.get(chunk, Control()) for chunk in range(count)]


def pictures(host: EngineHost, orders: list[Control]) -> list[list[bytes]]:
    return [host.step("live", order).jpeg for order in orders]


def state(stream: Any) -> dict[str, Any]:
    """Everything that decides the next chunk, and torch's own random numbers."""
    cache = stream.cache
    return {
        "index": stream.index,
        "frames": (cache.frames_seen, cache.window_ids, cache.sink_ids, list(cache.evicted)),
        "sink": cache.sink.numpy().tobytes(),
        "ring": cache._ring.numpy().tobytes(),
        "decoder": [tensor.numpy().tobytes() for tensor in stream.memory],
        "random": torch.get_rng_state().numpy().tobytes(),
    }


@pytest.fixture
def undisturbed(tiny_model: VideoModel) -> list[list[bytes]]:
    return pictures(loaded(tiny_model), controls(CHUNKS))


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("injected")


@pytest.mark.parametrize(("owner", "method", "after"), ON_THE_WAY)
def test_a_failed_step_of_a_real_model_changes_nothing_and_the_next_chunk_is_the_same(
    tiny_model: VideoModel,
    undisturbed: list[list[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    after: int,
):
    host, orders = loaded(tiny_model), controls(CHUNKS)
    assert pictures(host, orders[:after]) == undisturbed[:after]
    seat = host._seats.get("live")
    before = None if seat is None else state(seat.stream)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, fail)
            with pytest.raises(RuntimeError, match="injected"):
                host.step("live", orders[after])
    assert host._seats.get("live") is seat
    if seat is not None and before is not None:
        after_it = state(seat.stream)
        decisive = before.keys() if after >= FULL_AFTER else ("index", "decoder", "random")
        assert {key: after_it[key] for key in decisive} == {key: before[key] for key in decisive}
    assert pictures(host, orders[after:]) == undisturbed[after:]


def test_a_switch_of_the_prompt_that_fails_is_taken_back_or_made_again(
    tiny_model: VideoModel, undisturbed: list[list[bytes]], monkeypatch: pytest.MonkeyPatch
):
    straight = pictures(loaded(tiny_model), [FIRST, *[Control()] * (CHUNKS - 1)])
    assert straight[SWITCHED_AT:] != undisturbed[SWITCHED_AT:]
    for again, wanted in ((Control(), straight), (Control(prompt=RIGHT), undisturbed)):
        host, orders = loaded(tiny_model), controls(CHUNKS)
        pictures(host, orders[:SWITCHED_AT])
        with monkeypatch.context() as patch:
            patch.setattr(ChunkRollout, "denoise_after", fail)
            with pytest.raises(RuntimeError, match="injected"):
                host.step("live", orders[SWITCHED_AT])
        orders[SWITCHED_AT] = again
        assert pictures(host, orders[SWITCHED_AT:]) == wanted[SWITCHED_AT:]


@pytest.mark.parametrize("method", ["denoise_after", "commit"])
def test_a_switch_that_reads_the_window_again_is_taken_back_whole(
    tiny_model: VideoModel, monkeypatch: pytest.MonkeyPatch, method: str
):
    """The model's own way of some; whether the reading fails, or the step after it."""
    tiny_model.card = {**tiny_model.card, "refresh_on_switch": True}
    refreshed = pictures(loaded(tiny_model), controls(CHUNKS))
    straight = pictures(loaded(tiny_model), [FIRST, *[Control()] * (CHUNKS - 1)])
    for again, wanted in ((Control(), straight), (Control(prompt=RIGHT), refreshed)):
        host, orders = loaded(tiny_model), controls(CHUNKS)
        pictures(host, orders[:SWITCHED_AT])
        with monkeypatch.context() as patch:
            patch.setattr(ChunkRollout, method, fail)
            with pytest.raises(RuntimeError, match="injected"):
                host.step("live", orders[SWITCHED_AT])
        orders[SWITCHED_AT] = again
        assert pictures(host, orders[SWITCHED_AT:]) == wanted[SWITCHED_AT:]


def test_a_new_take_that_fails_leaves_the_old_one_whole(
    tiny_model: VideoModel, undisturbed: list[list[bytes]], monkeypatch: pytest.MonkeyPatch
):
    host, orders = loaded(tiny_model), controls(CHUNKS)
    pictures(host, orders[:2])
    with monkeypatch.context() as patch:
        patch.setattr(ChunkRollout, "denoise_after", fail)
        with pytest.raises(RuntimeError, match="injected"):
            host.step("live", Control(restart=Restart(seed=9, steps=1, sink="none"), prompt=RIGHT))
    assert pictures(host, orders[2:]) == undisturbed[2:]


def test_a_chunk_that_cannot_be_encoded_is_made_again(
    tiny_model: VideoModel, undisturbed: list[list[bytes]], monkeypatch: pytest.MonkeyPatch
):
    host, orders = loaded(tiny_model), controls(CHUNKS)
    pictures(host, orders[:3])
    with monkeypatch.context() as patch:
        patch.setattr(encoding_module, "encode_jpeg", fail)
        with pytest.raises(RuntimeError, match="injected"):
            host.step("live", orders[3])
    assert pictures(host, orders[3:]) == undisturbed[3:]


@pytest.mark.slow
def test_a_failed_step_of_the_bundled_model_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    model = VideoModel.load("driving", dtype=torch.float32)
    left, right = list(model.steering["prompts"].values())[:2]
    orders = [Control(restart=Restart(seed=3, steps=model.default_steps, sink="ema"), prompt=left)]
    orders += [Control(prompt=right if chunk == SWITCHED_AT else None) for chunk in range(1, CHUNKS)]
    undisturbed = pictures(loaded(model), orders)
    host, shown = loaded(model), []
    for order in orders:
        seat = host._seats.get("live")
        before = None if seat is None else state(seat.stream)
        with monkeypatch.context() as patch:
            patch.setattr(type(model.codec), "decode_chunk", fail)
            with pytest.raises(RuntimeError, match="injected"):
                host.step("live", order)
        assert seat is None or state(seat.stream)["random"] == (before or {})["random"]
        assert seat is None or state(seat.stream)["index"] == (before or {})["index"]
        shown += pictures(host, [order])
    assert shown == undisturbed


# out of memory


def test_what_torch_says_when_memory_is_gone_is_known_for_what_it_is():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert describe_error(caught.value)["fatal"] == "memory"
    with pytest.raises(MemoryError) as from_numpy:
        np.empty(2**60, np.uint8)
    assert describe_error(from_numpy.value)["fatal"] == "memory"
    assert describe_error(torch.OutOfMemoryError("x"))["fatal"] == "memory"
    assert describe_error(RuntimeError("CUDA error: device-side assert triggered"))["fatal"] == "device"
    assert describe_error(RuntimeError("shapes do not match"))["fatal"] is None
    assert describe_error(ValueError("CUDA error: said a prompt"))["fatal"] is None


# a disk that takes no more


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write beyond `size` bytes of any file, as a full disk does in other words."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)


def test_a_write_that_the_disk_refuses_ends_the_recording_and_keeps_what_it_has(tmp_path: Path):
    path = tmp_path / "rec_20260101T000000Z_00000000.mp4"
    recorder = Recorder(path, fps=6.0, width=64, height=64, begin={**BEGIN, "first_chunk": 0})
    for _ in range(4):
        recorder.write(noise(6))
    written = recorder.frames
    with largest_file(recorder.bytes + 1000):
        for _ in range(4):
            recorder.write(noise(6))
        assert recorder.full == f"disk_error: {os.strerror(errno.EFBIG)}"
        recorder.close()
    assert count_frames(part_of(path)) >= written - 6  # a second, as after a crash


def test_a_video_that_cannot_be_opened_leaves_nothing_open(tmp_path: Path):
    path = tmp_path / new_name()
    part_of(path).mkdir()  # in the way
    for _ in range(2):  # the second one finds the journal free
        with pytest.raises(IsADirectoryError):
            Recorder(path, fps=6.0, width=64, height=64, begin={**BEGIN, "first_chunk": 0})
        assert not locked(journal_of(path))


def test_a_recording_that_cannot_be_finished_is_kept_for_the_next_start(tmp_path: Path):
    archive = Archive(tmp_path)
    archive.start({"title": "x"})
    assert archive.order is not None
    path = Path(archive.order.path)
    recorder = Recorder(path, fps=6.0, width=64, height=64, begin={**BEGIN, "first_chunk": 0})
    recorder.write(noise(24))
    recorder.close()
    archive.note(Recorded(frames=24, bytes=recorder.bytes, full=None))

    async def stop() -> None:
        with largest_file(4000):
            await archive.stop(lambda: asyncio.sleep(0))

    run(stop)
    assert "kept as it is" in archive.status()["reason"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [part_of(path).name, journal_of(path).name]
    )
    assert count_frames(part_of(path)) == 24


# an FFmpeg without an encoder


def test_without_an_encoder_the_stream_goes_on_in_jpeg_and_a_recording_says_why_it_ended(
    live: Any, synthetic: Any, watch: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(h264, "ENCODER", "no-such-encoder")

    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32), seed=1) as session:
            watcher = watch(session)
            watcher.viewer.h264 = True
            session.start_recording()
            await until(lambda: watcher.first(type="record", state="idle", reason="no_encoder") is not None)
            count = len(watcher.frames)
            await until(lambda: len(watcher.frames) >= count + 24)
            assert {frame.payload[:2] for frame in watcher.frames} == {JPEG_BEGINS}
            assert watcher.first(type="error") is None
            assert not list(session.archive.folder.iterdir())

    run(test)


# clocks


def test_a_wall_clock_that_jumps_disturbs_neither_pictures_nor_sessions(
    live: Any, synthetic: Any, watch: Any, monkeypatch: pytest.MonkeyPatch
):
    offsets = iter([DAY_SECONDS, -DAY_SECONDS, 0])
    real, real_ns = time.time, time.time_ns

    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32), seed=1) as session:
            watcher = watch(session)
            session.start_recording()
            for offset in offsets:
                monkeypatch.setattr(time, "time", lambda offset=offset: real() + offset)
                monkeypatch.setattr(time, "time_ns", lambda offset=offset: real_ns() + offset * 10**9)
                count = len(watcher.frames)
                await until(lambda count=count: len(watcher.frames) >= count + 24)
            await session.stop_recording()
            times = [frame.pts_us for frame in watcher.frames]
            steps = {after - before for before, after in itertools.pairwise(times)}
            assert max(steps) - min(steps) <= 1  # microseconds, of rounding
            assert session.status()["state"] == "running"
            assert session.archive.finished()

    run(test)


@pytest.mark.slow
@pytest.mark.usefixtures("synthetic_path")
def test_a_machine_that_slept_does_not_take_its_engine_for_hung(tmp_path: Path, watch: Any):
    """Server and engine are stopped for longer than the engine's silence may last."""
    source = ModelSource(module="synthetic", function="SyntheticModel", arguments=(60.0, 0.0, None, 32))
    patience = Patience(silence_seconds=5.0, step_seconds=5.0, step_factor=1.0, look_seconds=0.1)

    async def test() -> None:
        room = EngineRoom(lambda: EngineProcess(source, patience=patience))
        service = StreamService(room, start=Start(seed=5), record_dir=tmp_path)
        running = asyncio.create_task(service.run())
        watcher = watch(service.shared)
        await until(lambda: len(watcher.frames) > 12)
        assert room.engine is not None
        pid = room.engine.pid or 0
        os.kill(pid, signal.SIGSTOP)
        time.sleep(6.0)
        os.kill(pid, signal.SIGCONT)
        count = len(watcher.frames)
        await until(lambda: len(watcher.frames) > count + 24)
        assert room.restarts == {}
        assert watcher.first(type="error") is None
        await service.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(test)


# the end, in the middle of a chunk


@pytest.mark.slow
@pytest.mark.usefixtures("synthetic_path")
def test_a_shutdown_does_not_wait_for_a_chunk_without_end_and_keeps_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Any
):
    monkeypatch.setattr(service_module, "CHUNK_SECONDS", 0.2)
    source = ModelSource(module="synthetic", function="SyntheticModel", arguments=(60.0, 0.0, None, 32))

    async def test() -> None:
        room = EngineRoom(lambda: EngineProcess(source))
        service = StreamService(room, start=Start(seed=5), record_dir=tmp_path)
        running = asyncio.create_task(service.run())
        watcher = watch(service.shared)
        await until(lambda: len(watcher.frames) > 12)
        service.shared.start_recording()
        await until(lambda: service.shared.archive.status()["frames"] >= 120)
        played = service.shared.archive.status()["frames"]
        service.shared.prompt("please hang now")
        engine = room.engine
        assert isinstance(engine, EngineProcess)
        await until(lambda: engine._step_began is not None and time.monotonic() - engine._step_began > 1.0)
        closing = time.monotonic()
        await service.close()
        assert time.monotonic() - closing < 20.0  # the chunk would take a minute
        assert engine._process is not None
        assert engine._process.poll() is not None
        assert watcher.first(type="bye") is not None
        (recording,) = service.shared.archive.finished()
        assert count_frames(tmp_path / recording["name"]) >= played - 60  # one second
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(test)
