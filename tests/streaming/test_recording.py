import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fewstep.streaming import h264, recording
from fewstep.streaming.archive import recover
from fewstep.streaming.journal import begin_line, cue_line, read_journal, summarise, take_line
from fewstep.streaming.recording import NAME, Mp4Writer, Recorder, finish, new_name, part_of, read_metadata

SCRIPT: dict[str, Any] = {"seed": 4, "steps": 2, "sink": "ema", "cues": [{"chunk": 0, "prompt": "a"}]}
BEGIN = begin_line({"title": "x"}, script=SCRIPT, first_chunk=3)


def frames(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, None, :, None]
    shift = (np.arange(count, dtype=np.uint8) * 5)[:, None, None, None]
    return np.broadcast_to(ramp // 2 + shift, (count, height, width, 3)).copy()


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path):
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        Mp4Writer(tmp_path, fps=12.0, width=48, height=32, metadata={})


def test_a_written_video_gives_back_its_frames_rate_and_metadata(tmp_path: Path):
    path = tmp_path / "out.mp4"
    writer = Mp4Writer(path, fps=12.0, width=48, height=32, metadata={"title": "t", "seed": 2**60})
    writer.write(frames(6))
    writer.write(frames(7))
    writer.close()
    assert np.abs(decoded(path).astype(int) - np.concatenate([frames(6), frames(7)])).mean() < 4
    assert read_metadata(path)["seed"] == 2**60
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 12


@pytest.mark.parametrize("fragmented", [False, True])
def test_the_same_frames_are_the_same_file(tmp_path: Path, fragmented: bool):
    draws = np.random.default_rng(1)
    scene = draws.integers(0, 256, (12, 70, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    moving = np.stack([scene[:, 3 * number : 3 * number + 160] for number in range(50)])
    written = set()
    for _ in range(12):
        freed = [draws.integers(0, 256, draws.integers(1, 3_000_000), np.uint8) for _ in range(3)]
        del freed[1]  # what freed memory holds must not matter
        path = tmp_path / "out.mp4"
        writer = Mp4Writer(path, fps=12.0, width=160, height=96, metadata={}, fragmented=fragmented)
        writer.write(moving)
        writer.close()
        written.add(path.read_bytes())
    assert len(written) == 1


def test_odd_sizes_are_padded_not_refused(tmp_path: Path):
    path = tmp_path / "out.mp4"
    writer = Mp4Writer(path, fps=12.0, width=47, height=31, metadata={})
    writer.write(frames(3, 31, 47))
    writer.close()
    assert decoded(path).shape == (3, 32, 48, 3)


def test_a_folder_that_vanishes_ends_the_recording_and_says_so(tmp_path: Path):
    folder = tmp_path / "recordings"
    recorder = Recorder(folder / new_name(), fps=12.0, width=48, height=32, begin=BEGIN)
    recorder.write(frames(6))
    shutil.rmtree(folder)
    for _ in range(2):
        recorder.write(frames(6))
    assert recorder.full == "disk_error: No such file or directory"
    recorder.close()


def test_an_unfinished_recording_is_readable_up_to_its_last_second(tmp_path: Path):
    final = tmp_path / new_name()
    recorder = Recorder(final, fps=12.0, width=48, height=32, begin=BEGIN)
    for _ in range(10):
        recorder.write(frames(6))
    copy = tmp_path / "as_a_crash_leaves_it.mp4"
    copy.write_bytes(recorder.part.read_bytes())
    assert len(decoded(copy)) >= 60 - 12  # one second
    assert read_metadata(copy) == {"title": "x"}
    recorder.close()
    assert finish(final) == 60
    assert NAME.fullmatch(final.name)
    assert len(decoded(final)) == 60
    take = {**SCRIPT, "first_chunk": 3, "frames": 60}
    assert read_metadata(final) == {"title": "x", **SCRIPT, "takes": [take], "frames": 60}
    assert json.loads(final.with_suffix(".json").read_text()) == read_metadata(final)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [copy.name, final.name, final.with_suffix(".json").name]
    )


@pytest.mark.parametrize(
    ("limit", "value", "reason"), [("MIN_FREE_BYTES", 2**60, "disk_full"), ("MAX_BYTES", 0, "too_long")]
)
def test_a_recording_stops_by_itself_where_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, reason: str
):
    recorder = Recorder(tmp_path / new_name(), fps=12.0, width=48, height=32, begin=BEGIN)
    recorder.write(frames(6))
    monkeypatch.setattr(recording, limit, value)
    recorder.write(frames(6))
    assert recorder.full == reason
    assert recorder.frames == 6
    recorder.close()


def test_without_an_encoder_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(h264, "ENCODER", "no-such-encoder")
    with pytest.raises(ImportError, match="pip install --force-reinstall av"):
        Mp4Writer(tmp_path / "out.mp4", fps=12.0, width=48, height=32, metadata={})
    assert not list(tmp_path.iterdir())


def test_what_a_crash_left_is_finished_at_the_next_start_and_what_is_being_written_is_not(tmp_path: Path):
    crashed, running, empty = (tmp_path / new_name() for _ in range(3))
    recorder = Recorder(crashed, fps=12.0, width=48, height=32, begin=BEGIN)
    for _ in range(5):
        recorder.write(frames(6))
    recorder.journal.add(cue_line(5, "b"))
    recorder._wait()  # its thread would die in a crash, and not write on while what is left is finished
    recorder.journal.close()  # a crash closes files and finishes nothing
    other = Recorder(running, fps=12.0, width=48, height=32, begin=BEGIN)
    other.write(frames(30))
    part_of(empty).write_bytes(b"")
    empty.with_suffix(".journal.jsonl").write_text(json.dumps(BEGIN) + "\n")
    (tmp_path / "rec_mine.journal.jsonl").write_text("not ours")
    assert recover(tmp_path) == [crashed.name]
    metadata = read_metadata(crashed)
    assert metadata["recovered"] is True
    assert metadata["frames"] == len(decoded(crashed)) >= 30 - 12
    assert metadata["cues"][-1] == {"chunk": 5, "prompt": "b"}
    assert part_of(running).exists()
    assert (tmp_path / "rec_mine.journal.jsonl").exists()
    assert not part_of(empty).exists()
    other.close()
    assert finish(running) == 30


def test_a_journal_gives_each_take_its_script_and_its_share_of_the_frames(tmp_path: Path):
    lines = [
        BEGIN,
        cue_line(5, "b"),
        take_line(30, seed=9, steps=1, sink="none", prompt="b"),
        cue_line(2, "c"),
    ]
    whole = summarise(lines, frames=50)
    assert whole["takes"] == [
        {**SCRIPT, "cues": [*SCRIPT["cues"], {"chunk": 5, "prompt": "b"}], "first_chunk": 3, "frames": 30},
        {
            "seed": 9,
            "steps": 1,
            "sink": "none",
            "cues": [{"chunk": 0, "prompt": "b"}, {"chunk": 2, "prompt": "c"}],
            "first_chunk": 0,
            "frames": 20,
        },
    ]
    assert (whole["seed"], whole["frames"], whole["title"]) == (9, 50, "x")
    # A crash lost the frames of the second take.
    assert [take["frames"] for take in summarise(lines, frames=24)["takes"]] == [24]
    path = tmp_path / "journal"
    path.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"kind": "cu')
    assert read_journal(path) == lines


def test_a_full_disk_ends_the_recording_but_not_the_stream(live: Any, synthetic: Any, monkeypatch: Any):
    import asyncio

    from fewstep.streaming.fanout import Viewer

    async def test() -> None:
        async with asyncio.timeout(20), live(synthetic.SyntheticModel(fps=120.0, size=32)) as session:
            viewer = Viewer("controller")
            session.attach(viewer)
            session.start_recording()
            while session.archive.status()["frames"] == 0:
                await asyncio.sleep(0.005)
            monkeypatch.setattr(recording, "MIN_FREE_BYTES", 2**60)
            while session.archive.active:
                await asyncio.sleep(0.005)
            assert session.archive.status()["reason"] == "disk_full"
            generated = session.frames_generated
            while session.frames_generated < generated + 12:
                await asyncio.sleep(0.005)

    asyncio.run(test())
