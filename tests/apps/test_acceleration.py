"""`--accelerate` and `--decoder-device` reach the engine, and a script says when a late prompt showed."""

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fewstep.apps.cli import main
from fewstep.apps.stream import add_arguments, load_model, make_room, model_source
from fewstep.modalities.video.acceleration import SWITCHES
from fewstep.modalities.video.blocks import Block
from fewstep.modalities.video.captions import Attributes, canonical_caption
from fewstep.modalities.video.decoder_device import CodecOn
from fewstep.streaming.encoding import encode_jpeg
from fewstep.streaming.engine_process import EngineProcess
from fewstep.streaming.host import Control, EngineHost
from fewstep.streaming.prompts import Revision
from fewstep.streaming.script import Script, perform
from fewstep.streaming.takes import Restart
from fewstep.streaming.timeline import Timeline

TAKE = Restart(seed=5, steps=2, sink="ema")
LEFT, NIGHT = (
    canonical_caption(Attributes(manoeuvre="left", speed=speed, palette=palette))
    for speed, palette in (("slow", "meadow"), ("fast", "night"))
)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def test_what_the_engine_process_is_told_loads_the_model_as_asked(tiny_model_folder: Path) -> None:
    args = parsed(str(tiny_model_folder), "--accelerate", "static_steps", "--decoder-device", "cpu")
    name, device, accelerate, decoder, *logged = model_source(args).arguments
    model = load_model(str(name), str(device), str(accelerate), str(decoder))
    assert model.acceleration == SWITCHES["static_steps"]
    assert isinstance(model.codec, CodecOn)
    assert logged == ["warning", False]
    assert model_source(parsed()).arguments[:4] == ("driving", "cpu", "default", None)


def test_a_script_is_kept_to_the_chunk_whatever_overlaps(tiny_model_folder: Path) -> None:
    live = load_model(str(tiny_model_folder), "cpu", "overlapped_decoding")
    scripted = load_model(str(tiny_model_folder), "cpu", "overlapped_decoding", scripted=True)
    assert (live.chunks_ahead, scripted.chunks_ahead) == (1, 0)


def test_what_a_live_stream_compiles_is_compiled_before_a_viewer_comes(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each length of the past once; a script waits for it wherever it comes."""
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: None)
    lengths: list[int] = []
    forward = Block.forward

    def noted(self: Block, x: Any, time: Any, text: Any, rotation: Any, past: Any, mask: Any) -> Any:
        lengths.append(0 if past is None else past.length)
        return forward(self, x, time, text, rotation, past, mask)

    monkeypatch.setattr(Block, "forward", noted)
    load_model(str(tiny_model_folder), "cpu", "compiled", scripted=True)
    assert lengths == []
    model: Any = load_model(str(tiny_model_folder), "cpu", "compiled")
    warmed = set(lengths)
    lengths.clear()
    stream = model.stream(model.encode_prompt(NIGHT), seed=5)
    for _ in range(8):
        stream.step()
    assert set(lengths) == warmed
    assert len(warmed) > 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--accelerate", "magic"], "acceleration 'magic' is unknown; choose from default, exact"),
        (["--accelerate", "exact"], "--accelerate exact: cuda_graphs needs a CUDA device, not cpu"),
        (["--accelerate", "magic", "--device", "cuda", "--replicas", "2"], "'magic' is unknown"),
    ],
)
@pytest.mark.parametrize("command", [["stream"], ["video", "left", "-o", "out.mp4"]])
def test_an_acceleration_that_cannot_be_is_refused_in_one_line(
    command: list[str],
    flags: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = flags if command == ["stream"] else flags[:2]
    assert main([*command, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_script_refuses_a_switch_that_would_do_nothing_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.mp4"
    assert main(["video", "left", "-o", str(output), "--accelerate", "overlapped_decoding"]) == 2
    assert "a script's prompts would come a chunk late; it is for stream" in capsys.readouterr().err
    assert not output.exists()


def test_a_server_refuses_a_switch_without_torch() -> None:
    script = (
        "import sys, argparse; from fewstep.apps import stream; parser = argparse.ArgumentParser(); "
        "stream.add_arguments(parser); stream.check_start(parser.parse_args(['--accelerate', 'last_step'])); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-P", "-c", script], check=True)


def test_the_script_of_a_stream_that_is_a_chunk_ahead_says_where_prompts_showed(
    tiny_model_folder: Path,
) -> None:
    """Replayed without overlapping, the script gives the very pictures that were shown."""
    host = EngineHost(lambda: load_model(str(tiny_model_folder), "cpu", "overlapped_decoding"))
    timeline = Timeline(host.load())
    shown: list[bytes] = []
    for chunk in range(6):
        restart = TAKE if chunk == 0 else None
        prompt = {0: LEFT, 3: NIGHT}.get(chunk)
        step = host.step("one", Control(restart=restart, prompt=prompt))
        revision = None if prompt is None else Revision(rev=chunk, text=prompt, source="text")
        timeline.add(step, restart=restart, revision=revision, recording=False)
        shown += step.jpeg
    script = timeline.script()
    assert list(script["cues"]) == [{"chunk": 0, "prompt": LEFT}, {"chunk": 4, "prompt": NIGHT}]
    assert host._seats["one"].script()["cues"] == list(script["cues"])

    def played(**changes: Any) -> list[bytes]:
        plain = load_model(str(tiny_model_folder), "cpu", "overlapped_decoding", scripted=True)
        chunks = perform(plain, Script.from_dict(script | changes))
        return [encode_jpeg(frame) for _ in range(6) for frame in next(chunks).frames]

    assert played() == shown
    assert played(cues=[{"chunk": 0, "prompt": LEFT}, {"chunk": 3, "prompt": NIGHT}]) != shown


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--in-process"]])
def test_the_engine_runs_as_asked_in_its_own_process_and_in_this_one(
    tiny_model_folder: Path, flags: list[str]
) -> None:
    how = ["--accelerate", "last_step", "--decoder-device", "cpu"]
    args = parsed(str(tiny_model_folder), *how, *flags)
    model = load_model(str(tiny_model_folder), "cpu", "last_step")
    chunks = perform(model, Script.from_dict({"cues": [{"chunk": 0, "prompt": LEFT}], **vars_of(TAKE)}))
    wanted = [[encode_jpeg(frame) for frame in next(chunks).frames] for _ in range(3)]

    async def test() -> list[list[bytes]]:
        engine = make_room(args)._make()
        await engine.load()
        first = await engine.step("one", Control(restart=TAKE, prompt=LEFT))
        found = [first, *[await engine.step("one", Control()) for _ in range(2)]]
        await engine.close()
        return [step.jpeg for step in found]

    assert asyncio.run(test()) == wanted


@pytest.mark.slow
def test_a_decoder_device_that_is_not_there_is_the_engines_to_name(tiny_model_folder: Path) -> None:
    async def test() -> None:
        engine = EngineProcess(model_source(parsed(str(tiny_model_folder), "--decoder-device", "cuda:99")))
        try:
            with pytest.raises(ValueError, match="no device 'cuda:99' here"):
                await engine.load()
        finally:
            await engine.close()

    asyncio.run(test())


def vars_of(take: Restart) -> dict[str, Any]:
    return {"seed": take.seed, "steps": take.steps, "sink": take.sink}
