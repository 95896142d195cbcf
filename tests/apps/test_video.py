import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fewstep.apps import video
from fewstep.apps.cli import main
from fewstep.streaming.recording import read_metadata
from fewstep.streaming.script import Cue, Script, perform


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, synthetic: Any) -> Any:
    built = synthetic.SyntheticModel(fps=12.0)
    monkeypatch.setattr(video, "load_model", lambda name, device: built)
    return built


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_video_has_the_length_asked_for_and_knows_its_script(model: Any, tmp_path: Path, capsys: Any):
    output = tmp_path / "out.mp4"
    assert main(["video", "a red ball", "--seconds", "2.1", "-o", str(output), "--seed", "7"]) == 0
    assert decoded(output).shape == (25, 96, 96, 3)
    metadata = read_metadata(output)
    assert (metadata["seed"], metadata["steps"], metadata["sink"]) == (7, 2, "ema")
    assert metadata["cues"] == [{"chunk": 0, "prompt": "a red ball"}]
    assert "25 frames" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_prompts_switch_at_their_times_and_the_frames_are_those_of_the_script(model: Any, tmp_path: Path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# a drive\n0 meadow by day\n\n0:01 desert\n1.6s   snow at night\n")
    output = tmp_path / "out.mp4"
    assert main(["video", "--prompts", str(prompts), "--seconds", "3", "-o", str(output)]) == 0
    cues = (Cue(0, "meadow by day"), Cue(2, "desert"), Cue(3, "snow at night"))
    assert read_metadata(output)["cues"] == [{"chunk": cue.chunk, "prompt": cue.prompt} for cue in cues]
    chunks = perform(model, Script(seed=0, steps=2, sink="ema", cues=cues))
    wanted = np.concatenate([next(chunks).frames for _ in range(6)])
    # H.264 at this quality moves a pixel by a few levels; another prompt moves it by dozens.
    assert np.abs(decoded(output).astype(int) - wanted.astype(int)).mean() < 6


def test_a_script_from_the_live_stream_is_replayed(model: Any, tmp_path: Path):
    script = Script(seed=11, steps=4, sink="first", cues=(Cue(0, "meadow"), Cue(1, "night")))
    path = tmp_path / "script.json"
    path.write_text(json.dumps(script.to_dict() | {"chunks": 2}))
    output = tmp_path / "out.mp4"
    assert main(["video", "--prompts", str(path), "--seconds", "1", "-o", str(output)]) == 0
    metadata = read_metadata(output)
    assert Script.from_dict(metadata) == script


def test_an_interrupted_video_leaves_nothing_and_keeps_the_old_file(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    output = tmp_path / "out.mp4"
    output.write_bytes(b"old")

    def interrupt(*_: Any) -> Any:
        yield next(perform(model, Script(seed=0, steps=2, sink="ema", cues=(Cue(0, "x"),))))
        raise KeyboardInterrupt

    monkeypatch.setattr("fewstep.streaming.script.perform", interrupt)
    assert main(["video", "a red ball", "-o", str(output)]) == 130
    assert output.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize(
    ("arguments", "prompts", "message"),
    [
        (["   "], None, "prompt is empty"),
        (["x" * 401], None, "at most 400"),
        (["x", "--seconds", "0"], None, "--seconds"),
        (["x", "--seconds", "nan"], None, "--seconds"),
        (["x", "--steps", "3"], None, "steps must be one of 1, 2, 4"),
        (["x", "--seed", "-1"], None, "seed must be in"),
        (["x", "-o", "missing/out.mp4"], None, "no folder"),
        (["x", "-o", "out.gif"], None, "must end in .mp4"),
        ([], "soon turn left", "line 1: expected TIME PROMPT"),
        ([], "0 left\n0.1 right", "two cues fall on chunk 0"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_writes_nothing(
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    arguments: list[str],
    prompts: str | None,
    message: str,
):
    monkeypatch.chdir(tmp_path)
    if prompts is not None:
        Path("prompts.txt").write_text(prompts)
        arguments = [*arguments, "--prompts", "prompts.txt"]
    if "-o" not in arguments:
        arguments = [*arguments, "-o", "out.mp4"]
    assert main(["video", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*.mp4"))


def test_a_prompts_file_that_is_not_there_is_named(model: Any, tmp_path: Path, capsys: Any):
    arguments = ["--prompts", str(tmp_path / "none.txt"), "-o", str(tmp_path / "out.mp4")]
    assert main(["video", *arguments]) == 2
    assert "none.txt" in capsys.readouterr().err


def test_a_recording_is_made_again_frame_for_frame(model: Any, tmp_path: Path, synthetic: Any):
    from fewstep.streaming.host import Control, EngineHost, RecordOrder
    from fewstep.streaming.recording import finish, new_name
    from fewstep.streaming.takes import Restart

    path = tmp_path / new_name()
    host = EngineHost(lambda: synthetic.SyntheticModel(fps=12.0))
    host.load()
    order = RecordOrder(path=str(path), metadata={"model": "synthetic"})
    controls = [
        Control(restart=Restart(seed=3, steps=2, sink="ema"), prompt="meadow"),
        Control(prompt="night"),
        Control(record=order),  # recorded from chunk 2 on, in the middle of a take
        Control(record=order, prompt="snow"),
        Control(record=order, restart=Restart(seed=8, steps=4, sink="none"), prompt="snow"),
        Control(record=order, prompt="sea"),
    ]
    for control in controls:
        host.step("a", control)
    host.forget("a")
    assert finish(path) == 24
    output = tmp_path / "again.mp4"
    assert main(["video", "--replay", str(path), "-o", str(output)]) == 0
    again, recorded = decoded(output).astype(int), decoded(path).astype(int)
    assert again.shape == recorded.shape
    # Two encoders of different effort: a few levels; another seed or chunk moves pixels by dozens.
    assert np.abs(again - recorded).mean() < 6
    assert np.abs(again[6:] - recorded[:-6]).mean() > 9
    json_file = path.with_suffix(".json")
    assert main(["video", "--replay", str(json_file), "-o", str(output)]) == 0


def test_a_replay_with_other_weights_or_other_prompts_is_refused(
    model: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    take = {"seed": 0, "steps": 2, "sink": "ema", "cues": [{"chunk": 0, "prompt": "x"}]}
    recorded = {"frames": 6, "takes": [take | {"first_chunk": 0, "frames": 6}], "weights_sha256": "ab" * 32}
    path, output = tmp_path / "rec.json", tmp_path / "out.mp4"
    path.write_text(json.dumps(recorded))
    monkeypatch.setattr(model, "folder", tmp_path, raising=False)
    assert main(["video", "--replay", str(path), "-o", str(output)]) == 2
    assert "weights abababababab" in capsys.readouterr().err
    assert main(["video", "mine", "--replay", str(path), "-o", str(output)]) == 2
    assert "leave out PROMPT" in capsys.readouterr().err
    path.write_text(json.dumps(recorded | {"frames": 7}))
    assert main(["video", "--replay", str(path), "-o", str(output)]) == 2
    assert "says 7 frames" in capsys.readouterr().err
    assert not output.exists()
