import asyncio
import dataclasses
import json
from typing import Any

import pytest

from fewstep.modalities.video.acceleration import SWITCHES
from fewstep.streaming.host import Step
from fewstep.streaming.model_info import describe
from fewstep.streaming.prompts import Revision
from fewstep.streaming.protocol import MAX_PROMPT_CHARACTERS, BadMessage, Flags, Steer
from fewstep.streaming.takes import Restart
from fewstep.streaming.timeline import Timeline
from tests.streaming.watcher import Watcher, direct
from tests.waiting import run, until


def test_a_prompt_marker_names_the_first_frame_of_its_revision(live: Any, synthetic: Any):
    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32)) as session:
            watcher = Watcher(session)
            await until(lambda: len(watcher.frames) > 6)
            session.prompt("a red ball over the sea", ref="mine")
            await until(lambda: watcher.frames[-1].revision == 2)
        accepted, applied = watcher.of_type("prompt.accepted")[0], watcher.of_type("prompt.applied")[-1]
        assert (accepted["rev"], accepted["id"]) == (2, "mine")
        first = next(frame for frame in watcher.frames if frame.revision == 2)
        assert (applied["rev"], applied["first_seq"], applied["chunk"]) == (2, first.seq, first.chunk)
        assert first.flags & Flags.FIRST_OF_PROMPT
        assert first.flags & Flags.FIRST_OF_CHUNK

    run(test)


def test_a_prompt_of_a_stream_that_is_a_chunk_ahead_is_told_with_the_frames_that_show_it(
    live: Any, tiny_model: Any
):
    model = tiny_model.with_acceleration(SWITCHES["overlapped_decoding"])
    model.card = {**tiny_model.card, "fps": 240.0}

    async def test() -> None:
        async with live(model, prompt="left on a meadow") as session:
            watcher = Watcher(session)
            await until(lambda: len(watcher.frames) > 6)
            session.prompt("right in the snow")
            await until(lambda: watcher.frames[-1].revision == 2)
            script = session.ready().timeline.script()
        applied = watcher.of_type("prompt.applied")[-1]
        assert (
            applied["chunk"]
            == script["cues"][1]["chunk"]
            >= watcher.of_type("prompt.accepted")[0]["eta_chunk"]
        )
        shown = next(frame for frame in watcher.frames if frame.revision == 2)
        assert (applied["rev"], applied["first_seq"], applied["chunk"]) == (2, shown.seq, shown.chunk)
        assert shown.flags & Flags.FIRST_OF_PROMPT
        before = direct(tiny_model, script | {"cues": script["cues"][:1]})
        differing = (frame.seq for frame in watcher.frames if frame.payload != before[frame.seq])
        assert next(differing) == shown.seq

    run(test)


def test_a_new_take_shows_the_prompt_that_was_on_its_way_and_supersedes_the_one_before(synthetic: Any):
    info = dataclasses.replace(describe(synthetic.SyntheticModel()), chunks_ahead=2)
    timeline, take = Timeline(info), Restart(seed=1, steps=2, sink="ema")
    step = Step(jpeg=[b""], h264=None, seconds={}, window={}, recorded=None)
    one, two, three, four = (Revision(rev=rev, text=f"prompt {rev}", source="text") for rev in (1, 2, 3, 4))

    def news(restart: Restart | None, revision: Revision | None) -> list[tuple[str, int]]:
        added = timeline.add(step, restart=restart, revision=revision, recording=False)
        assert bool(added.frames[0].flags & Flags.FIRST_OF_PROMPT) == bool(added.news)
        return [(message["type"], message["rev"]) for message in added.news]

    assert news(take, one) == [("prompt.applied", 1)]
    assert news(None, two) == []
    assert news(None, three) == []
    assert news(None, None) == [("prompt.applied", 2)]
    assert news(take, None) == [("prompt.applied", 3)]
    assert news(None, four) == []
    assert news(take, one) == [("prompt.superseded", 4), ("prompt.applied", 1)]
    assert news(None, None) == news(None, None) == []
    assert [cue["prompt"] for cue in timeline.script()["cues"]] == ["prompt 1"]


def test_of_a_flood_of_prompts_each_is_applied_or_superseded_and_the_last_wins(live: Any, synthetic: Any):
    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32, chunk_seconds=0.02)) as session:
            watcher = Watcher(session)
            for number in range(40):
                session.prompt(f"prompt {number}")
                await asyncio.sleep(0.003)
            await until(lambda: watcher.saw_applied("prompt 39"))
        applied = {message["rev"] for message in watcher.of_type("prompt.applied")} - {1}
        superseded = {message["rev"] for message in watcher.of_type("prompt.superseded")}
        assert applied | superseded == {message["rev"] for message in watcher.of_type("prompt.accepted")}
        assert not applied & superseded

    run(test)


def test_a_refused_prompt_changes_nothing(live: Any, synthetic: Any):
    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32)) as session:
            watcher = Watcher(session)
            session.prompt("refuse me")
            await until(lambda: len(watcher.of_type("prompt.rejected")) == 1)
            await until(lambda: len(watcher.frames) > 20)
            for bad in ("", "   ", "x" * (MAX_PROMPT_CHARACTERS + 1)):
                with pytest.raises(BadMessage):
                    session.prompt(bad)
        assert "refuses this prompt" in watcher.of_type("prompt.rejected")[0]["message"]
        assert {frame.revision for frame in watcher.frames} == {1}

    run(test)


def test_steering_keeps_its_attributes_and_leaves_them_alone_on_free_text(live: Any, synthetic: Any):
    async def test() -> None:
        async with live(synthetic.SyntheticModel(fps=120.0, size=32)) as session:
            watcher = Watcher(session)
            session.steer(Steer(type="steer", key="ArrowLeft"))
            session.prompt("something else")
            session.steer(Steer(type="steer", axis="speed", value="fast"))
            assert session.status()["steering"] == {"manoeuvre": "left", "speed": "fast", "palette": "meadow"}
            wanted = synthetic.STEERING["prompts"]["left|fast|meadow"]
            await until(lambda: watcher.saw_applied(wanted))
            for bad in (Steer(type="steer", key="Escape"), Steer(type="steer", axis="speed", value="warp")):
                with pytest.raises(BadMessage):
                    session.steer(bad)
            assert session.status()["steering"]["speed"] == "fast"

    run(test)


def test_histories_stay_bounded_over_hundreds_of_prompts(live: Any, synthetic: Any):
    async def test() -> None:
        model = synthetic.SyntheticModel(fps=300.0, size=8)
        async with live(model) as session:
            watcher = Watcher(session)
            for number in range(100):
                session.prompt(f"prompt {number}")
                await until(lambda: session.ready().desk.pending is None)
                watcher.messages.clear()
                watcher.frames.clear()
            assert len(session.ready().timeline.markers) == 64
            assert len(session._jobs) <= 1
            assert len(json.dumps(session.welcome("viewer"))) < 16_000

    run(test)
