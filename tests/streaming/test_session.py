import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import av
import pytest

from fewstep.streaming.engine_thread import EngineThread
from fewstep.streaming.protocol import BadMessage, Flags
from fewstep.streaming.recording import read_metadata
from fewstep.streaming.room import EngineRoom
from fewstep.streaming.service import StreamService
from fewstep.streaming.takes import Start
from tests.streaming.watcher import Watcher, direct
from tests.waiting import run, until


def test_frames_equal_a_direct_run_of_the_script_whatever_viewers_do(live: Any, synthetic: Any):
    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32), seed=5) as session:
            first = Watcher(session)
            await until(lambda: len(first.frames) > 20)
            session.prompt("a red ball over the sea")
            await until(lambda: first.saw_applied("a red ball over the sea"))
            session.pause()
            second = Watcher(session)
            await asyncio.sleep(0.05)
            session.resume()
            await until(lambda: len(second.frames) > 10)
            session.prompt("snow at night")
            await until(lambda: first.saw_applied("snow at night"))
            session.detach(second.viewer)
            await until(lambda: len(first.frames) > 80)
            script = session.ready().timeline.script()
        assert [cue["prompt"] for cue in script["cues"][1:]] == ["a red ball over the sea", "snow at night"]
        wanted = direct(synthetic.SyntheticModel(fps=120.0, size=32), script)
        assert [frame.seq for frame in first.frames] == list(range(len(first.frames)))
        assert [frame.payload for frame in first.frames] == wanted[: len(first.frames)]
        for frame in second.frames:
            assert frame.payload == wanted[frame.seq]

    run(test)


def test_a_reset_with_another_seed_begins_a_new_take_and_numbers_run_on(live: Any, synthetic: Any):
    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32), seed=1) as session:
            watcher = Watcher(session)
            await until(lambda: len(watcher.frames) > 10)
            session.restart(seed=2, steps=4, sink="none")
            await until(lambda: any(frame.flags & Flags.RESET for frame in watcher.frames[1:]))
            await until(lambda: len(watcher.frames) > 40)
            script = session.ready().timeline.script()
        begins = [frame.seq for frame in watcher.frames if frame.flags & Flags.RESET]
        assert len(begins) == 2
        assert (script["seed"], script["steps"], script["sink"]) == (2, 4, "none")
        take = [frame.payload for frame in watcher.frames[begins[1] :]]
        assert take == direct(synthetic.SyntheticModel(fps=120.0, size=32), script)[: len(take)]
        times = [frame.pts_us for frame in watcher.frames]
        assert times == sorted(set(times))

    run(test)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"steps": 3}, "out_of_range"),
        ({"sink": "kitchen"}, "out_of_range"),
        ({"width": 97}, "unsupported_size"),
        ({"width": 96, "height": 48}, "unsupported_size"),
    ],
)
def test_an_impossible_reset_changes_nothing(live: Any, synthetic: Any, change: dict[str, Any], code: str):
    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32), seed=9) as session:
            before = session.status()
            with pytest.raises(BadMessage) as caught:
                session.restart(**change)
            assert caught.value.code == code
            assert session.status()["seed"] == before["seed"]
            watcher = Watcher(session)
            await until(lambda: len(watcher.frames) > 20)
            assert sum(1 for frame in watcher.frames if frame.flags & Flags.RESET) == 1

    run(test)


def test_nobody_watching_means_one_chunk_and_rest(live: Any, synthetic: Any):
    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32)) as session:
            await until(lambda: session.frames_generated == 6)
            await asyncio.sleep(0.1)
            assert session.frames_generated == 6
            assert session.status()["pause"] == ["no_viewers"]
            watcher = Watcher(session)
            await until(lambda: len(watcher.frames) > 30)
            session.set_visible(watcher.viewer, False)
            assert session.status()["pause"] == ["no_viewers"]

    run(test)


def test_a_pause_freezes_the_picture_at_once(live: Any, synthetic: Any):
    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32)) as session:
            watcher = Watcher(session)
            await until(lambda: len(watcher.frames) > 10)
            session.pause()
            count = len(watcher.frames)
            await asyncio.sleep(0.15)
            assert len(watcher.frames) == count
            assert session.status()["state"] == "paused"
            session.resume()
            await until(lambda: len(watcher.frames) > count + 10)

    run(test)


def test_generation_is_never_more_than_one_chunk_ahead_of_playout(live: Any, synthetic: Any):
    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32)) as session:
            watcher = Watcher(session)
            worst = 0
            while len(watcher.frames) < 100:
                if watcher.frames:
                    newest = (session.frames_generated - 1) // 6
                    worst = max(worst, newest - watcher.frames[-1].chunk)
                await asyncio.sleep(0.002)
        assert worst == 1

    run(test)


def test_a_stalled_viewer_holds_nobody_up_and_is_live_again_at_once(live: Any, synthetic: Any):
    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32)) as session:
            stalled, quick = Watcher(session), Watcher(session)
            await until(lambda: len(stalled.frames) > 5)
            stalled.stalled = True
            begun, count = len(quick.frames), len(stalled.frames)
            await until(lambda: len(quick.frames) > begun + 100)
            stalled.stalled = False
            stalled.drain()
            await until(lambda: len(stalled.frames) > count)
            # No backlog: the first frame after the stall is the newest, not the one it had missed.
            assert stalled.frames[count].seq > begun + 90
            seqs = [frame.seq for frame in quick.frames]
            assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))

    run(test)


def test_the_text_encoder_is_warmed_after_the_first_chunk_and_once(live: Any, synthetic: Any):
    async def test() -> None:
        model = synthetic.SyntheticModel()
        async with live(model) as session:
            watcher = Watcher(session)
            await until(lambda: len(watcher.frames) > 3 * model.chunk_frames)
            await until(lambda: model.warmed > 0)
        assert model.warmed == 1

    run(test)


def test_an_engine_fault_is_told_and_a_reset_recovers(live: Any, synthetic: Any, caplog: Any):
    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32, fail_at=3)) as session:
            watcher = Watcher(session)
            await until(lambda: len(watcher.of_type("error")) == 1)
            assert watcher.of_type("error")[0]["code"] == "engine_error"
            assert session.status()["state"] == "failed"
            session.restart()
            await until(lambda: len(watcher.frames) > 40)
            assert session.status()["state"] == "running"

    run(test)
    assert "injected fault" in caplog.text


def test_a_model_that_cannot_be_loaded_is_raised(tmp_path: Path):
    def load() -> Any:
        raise ValueError("no such model")

    async def test() -> None:
        room = EngineRoom(lambda: EngineThread(load))
        service = StreamService(room, start=Start(), record_dir=tmp_path)
        with pytest.raises(BadMessage, match="still loading"):
            service.shared.prompt("too early")
        with pytest.raises(ValueError, match="no such model"):
            await service.run()
        await service.close()

    run(test)


def test_a_recording_holds_every_frame_and_its_own_script(live: Any, synthetic: Any):
    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32), seed=3) as session:
            watcher = Watcher(session)
            await until(lambda: len(watcher.frames) > 6)
            session.start_recording()
            with pytest.raises(BadMessage, match="running"):
                session.start_recording()
            begun = len(watcher.frames)
            session.prompt("snow at night")
            await until(lambda: len(watcher.frames) > begun + 40)
            await session.stop_recording()
            with pytest.raises(BadMessage, match="nothing is being recorded"):
                await session.stop_recording()
            record = watcher.of_type("record")[-1]
            assert record["state"] == "idle"
            path = session.archive.find(record["finished"][0]["name"])
            assert path is not None
            await until(lambda: not watcher.frames[-1].flags & Flags.RECORDING)
        recorded = [frame for frame in watcher.frames if frame.flags & Flags.RECORDING]
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == len(recorded)
        metadata = read_metadata(path)
        assert metadata["seed"] == 3
        assert metadata["cues"][-1]["prompt"] == "snow at night"
        assert json.loads(path.with_suffix(".json").read_text()) == metadata
        assert sorted(item.name for item in path.parent.iterdir()) == [
            path.with_suffix(".json").name,
            path.name,
        ]

    run(test)


def test_closing_finishes_a_recording_and_says_goodbye(live: Any, synthetic: Any):
    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32)) as session:
            watcher = Watcher(session)
            session.start_recording()
            await until(lambda: len(watcher.frames) > 20)
            await session.close()
            assert watcher.viewer.closing == (1001, "shutdown")
            assert watcher.messages[-1]["type"] == "bye"
            with contextlib.closing(
                av.open(str(session.archive.folder / session.archive.finished()[0]["name"]))
            ) as c:
                assert sum(1 for _ in c.decode(video=0)) >= 18

    run(test)


def test_only_names_of_its_own_recordings_are_found(live: Any, synthetic: Any):
    async def test() -> None:
        async with live(synthetic.SyntheticModel()) as session:
            folder = session.archive.folder
            folder.mkdir()
            (folder / "secret.mp4").write_bytes(b"x")
            (folder / "rec_20260101T000000Z_00000000.mp4").symlink_to(folder / "secret.mp4")
            for name in ("secret.mp4", "../secret.mp4", "rec_20260101T000000Z_00000000.mp4"):
                assert session.archive.find(name) is None

    run(test)
