import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from fewstep.apps import video
from fewstep.apps.cli import main
from fewstep.apps.video_start import start_frames
from fewstep.modalities.video.decoder_device import CodecOn
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.video_stream import VideoStream
from fewstep.streaming.recording import read_metadata
from fewstep.streaming.script import Cue, Script, perform


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, synthetic: Any) -> Any:
    built = synthetic.SyntheticModel(fps=12.0)
    monkeypatch.setattr(VideoModel, "load", lambda *_, **__: built)
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


def test_a_prompt_that_comes_after_the_end_is_told(model: Any, tmp_path: Path, capsys: Any):
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes(b"\xef\xbb\xbf0:00 meadow\r\n0:01 desert\r\n0:02 snow\r\n")
    arguments = ["--prompts", str(prompts), "-o", str(tmp_path / "out.mp4")]
    assert main(["video", *arguments, "--seconds", "2"]) == 0
    assert "1 of 3 prompts never show: from 2.0 s on, and --seconds is 2" in capsys.readouterr().err
    assert main(["video", *arguments, "--seconds", "2.1"]) == 0
    assert "never show" not in capsys.readouterr().err


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

    def interrupt(*_: Any, **__: Any) -> Any:
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
        ([""], None, "prompt is empty"),
        (["x" * 2001], None, "at most 2000"),
        (["x", "--seconds", "0"], None, "--seconds"),
        (["x", "--seconds", "nan"], None, "--seconds"),
        (["x", "--steps", "3"], None, "steps must be one of 1, 2, 4"),
        (["x", "--seed", "-1"], None, "seed must be in"),
        (["x", "-o", "missing/out.mp4"], None, "no folder"),
        (["x", "-o", "out.gif"], None, "must end in .mp4"),
        (["x", "-o", "folder.mp4"], None, "folder.mp4 is a folder"),
        (["--prompts", "."], None, "--prompts: no file ."),
        ([], "0 caf\udce9", "prompts.txt is no text in UTF-8"),
        ([], "soon turn left", "line 1: expected TIME PROMPT"),
        ([], "0 left\n0.1 right", "prompts at 0 s and 0.1 s fall on one chunk"),
        (["x"], "0 left", "prompts at 0 s and 0 s fall on one chunk"),
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
    Path("folder.mp4").mkdir()
    if prompts is not None:
        Path("prompts.txt").write_bytes(prompts.encode(errors="surrogateescape"))
        arguments = [*arguments, "--prompts", "prompts.txt"]
    if "-o" not in arguments:
        arguments = [*arguments, "-o", "out.mp4"]
    assert main(["video", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.glob("*.mp4")] == ["folder.mp4"]
    assert not list(Path("folder.mp4").iterdir())


FLAGS = ["--seconds", "2", "--seed", "3"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> Any:
    """A model of the real classes in the command's hands: 12 frames a second, 96x96."""
    monkeypatch.setattr(VideoModel, "load", lambda *_, **__: tiny_model)
    return tiny_model


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The chunks that go to the file, as they were before H.264."""
    chunks_seen, right = [], video.write_frames

    def write_frames(model: Any, chunks: Any, *others: Any, **options: Any) -> None:
        right(model, (chunks_seen.append(chunk) or chunk for chunk in chunks), *others, **options)

    monkeypatch.setattr(video, "write_frames", write_frames)
    return chunks_seen


@pytest.mark.parametrize(("flags", "refresh"), [([], None), (["--refresh"], True), (["--no-refresh"], False)])
def test_a_prompt_switches_with_or_without_reading_the_window_again(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], refresh: bool | None
):
    prompts, output, asked = tmp_path / "prompts.txt", tmp_path / "out.mp4", []
    prompts.write_text("0 left\n0:01 right\n")
    right = VideoStream.set_prompt

    def set_prompt(stream: VideoStream, features: Any, *, refresh: bool | None = None) -> None:
        if stream.index:  # the first prompt is nothing to switch from
            asked.append(refresh)
        right(stream, features, refresh=refresh)

    monkeypatch.setattr(VideoStream, "set_prompt", set_prompt)
    assert main(["video", "--prompts", str(prompts), "-o", str(output), *FLAGS, *flags]) == 0
    assert asked == [refresh]
    assert read_metadata(output).get("refresh") == refresh


def test_a_picture_of_any_size_stands_still_and_the_video_goes_on_from_it(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[np.ndarray]
):
    picture, output, given = tmp_path / "start.png", tmp_path / "out.mp4", []
    rows = np.zeros((50, 200, 3), np.uint8)
    rows[:, 80:120] = (250, 20, 120)  # what a square cut out of the middle shows most of
    Image.fromarray(rows).save(picture)
    encode = tiny.encode_start
    monkeypatch.setattr(tiny, "encode_start", lambda frames: given.append(frames) or encode(frames))
    arguments = ["left", "--start", str(picture), "-o", str(output), *FLAGS]
    assert main(["video", *arguments]) == 0
    assert [frames.shape for frames in given] == [(1, 96, 96, 3)]
    assert given[0][0, 48, 48].tolist() == [250, 20, 120]
    assert given[0][0, 48, 2].tolist() == [0, 0, 0]
    stream = tiny.stream(tiny.encode_prompt("left"), seed=3)
    wanted = [stream.begin_from(encode(given[0])), *(stream.step().frames for _ in range(3))]
    assert all(np.array_equal(*pair) for pair in zip(written, wanted, strict=True))
    assert decoded(output).shape == (24, 96, 96, 3)
    assert read_metadata(output)["start"]["file"] == "start.png"


@pytest.mark.parametrize("level", [0, 100, 255])
def test_a_picture_of_16_bits_is_as_bright_as_it_looks(tmp_path: Path, level: int):
    Image.fromarray(np.full((9, 9), 257 * level, np.uint16)).save(tmp_path / "start.png")
    frames = start_frames(tmp_path / "start.png", height=4, width=6, fps=12.0, last=9)
    assert frames.shape == (1, 4, 6, 3)
    assert (frames == level).all()


def test_the_last_frames_of_a_video_that_the_window_holds_are_gone_on_from(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from fewstep.modalities.video.files import write_video

    given, levels = [], np.linspace(0, 250, 120).round()  # 10 s at the model's own 12 frames a second
    frames = (np.full((64, 96, 3), level, np.uint8) for level in np.repeat(levels, 2))
    write_video(tmp_path / "before.mp4", frames, fps=24.0)
    encode = tiny.encode_start
    monkeypatch.setattr(tiny, "encode_start", lambda frames: given.append(frames) or encode(frames))
    arguments = ["left", "--start", str(tmp_path / "before.mp4"), "-o", str(tmp_path / "out.mp4"), *FLAGS]
    assert main(["video", *arguments]) == 0
    count = tiny.codec.pixel_frames(12)
    assert len(given[0]) == count < 120
    assert np.abs(given[0].mean(axis=(1, 2, 3)) - levels[-count:]).max() < 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--start", "none.png"], "--start: no file none.png"),
        (["--start", "notes.txt"], "neither a picture nor a video; known are .png"),
        (["--start", "broken.png"], "broken.png is no whole picture"),
        (["--start", "huge.png"], "huge.png is no whole picture"),
        (["--start", "broken.mp4"], "broken.mp4 cannot be decoded"),
        (["--decoder-device", "cuda:99"], "no device 'cuda:99' here"),
    ],
)
def test_a_start_or_decoder_that_cannot_be_is_refused_in_one_line(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, flags: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    for name in ("notes.txt", "broken.png", "broken.mp4"):
        Path(name).write_bytes(b"words")
    Image.new("1", (20_000, 20_000)).save("huge.png")  # more than Pillow unpacks
    assert main(["video", "left", "-o", "out.mp4", *FLAGS, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out.mp4").exists()


def test_a_decoder_with_a_device_named_makes_the_same_video(
    tiny: Any, tmp_path: Path, written: list[np.ndarray]
):
    for flags in ([], ["--decoder-device", "cpu"]):
        assert main(["video", "left", "-o", str(tmp_path / "out.mp4"), *FLAGS, *flags]) == 0
    assert len(written) == 8
    assert isinstance(tiny.codec, CodecOn)
    assert all(np.array_equal(*pair) for pair in zip(written[:4], written[4:], strict=True))


@pytest.mark.slow
def test_two_ranks_of_torchrun_make_what_one_process_makes(tiny_model_folder: Path, tmp_path: Path):
    prompt = json.loads((tiny_model_folder / "pipeline.json").read_text())["default_prompt"]
    found = {}
    for ranks in (1, 2):
        output = tmp_path / f"{ranks}.mp4"
        command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(ranks), "-m", "fewstep.apps.cli", "video", prompt]
        command += ["--model", str(tiny_model_folder), "-o", str(output), *FLAGS]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.stdout.count("24 frames, 2.0 s") == 1  # the first rank alone says so
        found[ranks] = decoded(output).astype(int)
    assert np.abs(found[1] - found[2]).mean() < 3  # a few levels of bfloat16's rounding
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.mp4", "2.mp4"]


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


@pytest.mark.parametrize("flags", [[], ["--refresh"]])
@pytest.mark.parametrize("start", [False, True])
def test_a_video_of_this_command_is_made_again_byte_for_byte(
    tiny: Any, tmp_path: Path, capsys: Any, flags: list[str], start: bool
):
    prompts, first, again = (tmp_path / name for name in ("prompts.txt", "first.mp4", "again.mp4"))
    prompts.write_text("0 left\n0:01 right\n")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "start.png")
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "other.png")
    begin = ["--start", str(tmp_path / "start.png")] if start else []
    assert main(["video", "--prompts", str(prompts), "-o", str(first), *FLAGS, *flags, *begin]) == 0
    assert main(["video", "--replay", str(first), "-o", str(again), *begin]) == 0
    assert again.read_bytes() == first.read_bytes()
    assert capsys.readouterr().out.endswith("24 frames, as recorded\n")
    other = [] if start else ["--start", str(tmp_path / "start.png")]
    assert main(["video", "--replay", str(first), "-o", str(again), *other]) == 2
    assert ("give that file as --start" if start else "leave out --start") in capsys.readouterr().err
    if start:
        other = ["--start", str(tmp_path / "other.png")]
        assert main(["video", "--replay", str(first), "-o", str(again), *other]) == 2
        assert "other.png is not the start.png that it began from" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["words.mp4", "other.mp4", "words.json", "list.json", "binary.json"])
def test_a_replay_of_what_was_not_made_here_is_refused_in_one_line(
    model: Any, tmp_path: Path, capsys: Any, name: str
):
    from fewstep.modalities.video.files import write_video

    for path, content in (
        ("words.mp4", b"x"),
        ("words.json", b"x"),
        ("list.json", b"[]"),
        ("binary.json", b"\xff"),
    ):
        (tmp_path / path).write_bytes(content)
    write_video(tmp_path / "other.mp4", [np.zeros((16, 16, 3), np.uint8)], fps=12.0)
    assert main(["video", "--replay", str(tmp_path / name), "-o", str(tmp_path / "out.mp4")]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert error.count("\n") == 1


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
