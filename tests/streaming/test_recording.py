from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fewstep.streaming import recording
from fewstep.streaming.recording import NAME, Mp4Writer, Recorder, read_metadata


def frames(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, None, :, None]
    shift = (np.arange(count, dtype=np.uint8) * 5)[:, None, None, None]
    return np.broadcast_to(ramp // 2 + shift, (count, height, width, 3)).copy()


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


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


def test_odd_sizes_are_padded_not_refused(tmp_path: Path):
    path = tmp_path / "out.mp4"
    writer = Mp4Writer(path, fps=12.0, width=47, height=31, metadata={})
    writer.write(frames(3, 31, 47))
    writer.close()
    assert decoded(path).shape == (3, 32, 48, 3)


def test_an_unfinished_recording_is_readable_up_to_its_last_second(tmp_path: Path):
    recorder = Recorder(tmp_path, fps=12.0, width=48, height=32, metadata={"seed": 4})
    for _ in range(10):
        recorder.write(frames(6))
    copy = tmp_path / "as_a_crash_leaves_it.mp4"
    copy.write_bytes(recorder.part.read_bytes())
    assert len(decoded(copy)) >= 60 - 2 * 12
    assert read_metadata(copy)["seed"] == 4
    recorder.close()
    final = recorder.finish({"seed": 4, "cues": []})
    assert NAME.fullmatch(final.name)
    assert len(decoded(final)) == 60
    assert read_metadata(final) == {"seed": 4, "cues": []}
    assert not recorder.part.exists()


@pytest.mark.parametrize(
    ("limit", "value", "reason"), [("MIN_FREE_BYTES", 2**60, "disk_full"), ("MAX_BYTES", 0, "too_long")]
)
def test_a_recording_stops_by_itself_where_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, reason: str
):
    recorder = Recorder(tmp_path, fps=12.0, width=48, height=32, metadata={})
    recorder.write(frames(6))
    monkeypatch.setattr(recording, limit, value)
    recorder.write(frames(6))
    assert recorder.full == reason
    assert recorder.frames == 6
    recorder.close()


def test_a_full_disk_ends_the_recording_but_not_the_stream(live: Any, synthetic: Any, monkeypatch: Any):
    import asyncio

    from fewstep.streaming.fanout import Viewer

    async def test() -> None:
        async with asyncio.timeout(20), live(synthetic.SyntheticModel(fps=120.0)) as session:
            viewer = Viewer("controller")
            session.attach(viewer)
            session.start_recording()
            while session.archive.status()["frames"] == 0:
                await asyncio.sleep(0.005)
            monkeypatch.setattr(recording, "MIN_FREE_BYTES", 2**60)
            while session.archive.active:
                await asyncio.sleep(0.005)
            assert session.archive.status()["reason"] == "disk_full"
            generated = session.metrics.frames_generated
            while session.metrics.frames_generated < generated + 12:
                await asyncio.sleep(0.005)

    asyncio.run(test())
