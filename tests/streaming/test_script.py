import pytest

from fewstep.streaming.script import Cue, Script, parse_cues, parse_script, place_cues


def test_times_are_seconds_or_minutes_and_seconds():
    text = "0 one\n12.5\ttwo words\n1:05 three\n# four\n  2:00.5s five"
    assert parse_cues(text) == [(0.0, "one"), (12.5, "two words"), (65.0, "three"), (120.5, "five")]


@pytest.mark.parametrize("line", ["one", "0:10", "-1 back", "1:2:3 too many", "0"])
def test_a_line_without_time_or_prompt_is_named(line: str):
    with pytest.raises(ValueError, match="line 2: expected TIME PROMPT"):
        parse_cues("0 start\n" + line)


def test_cues_move_to_the_nearest_chunk_boundary_in_order():
    timed = [(1.6, "c"), (0.0, "a"), (0.7, "b")]
    assert place_cues(timed, fps=12.0, chunk_frames=6) == (Cue(0, "a"), Cue(1, "b"), Cue(3, "c"))


def test_prompts_that_are_too_near_are_named_by_their_times():
    with pytest.raises(ValueError, match=r"prompts at 1 s and 1.2 s fall on one chunk, of 0.5 s"):
        place_cues([(1.2, "c"), (0.0, "a"), (1.0, "b")], fps=12.0, chunk_frames=6)


def test_a_script_survives_its_json_and_ignores_what_a_recording_adds():
    script = Script(seed=2**63 - 1, steps=1, sink="none", cues=(Cue(0, "a"), Cue(4, "b")))
    assert Script.from_dict({**script.to_dict(), "chunks": 9, "model": "x"}) == script


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a JSON script"),
        ("[]", "expected an object"),
        ("{}", "it needs seed, steps, sink and cues"),
        ('{"seed": 0, "steps": 2, "sink": "ema", "cues": []}', "prompt at the start"),
        ('{"seed": 0, "steps": 2, "sink": "ema", "cues": [{"chunk": 1, "prompt": "x"}]}', "at the start"),
        ('{"seed": -1, "steps": 2, "sink": "ema", "cues": [{"chunk": 0, "prompt": "x"}]}', "seed must be"),
        ('{"seed": 0, "steps": 2, "sink": "tub", "cues": [{"chunk": 0, "prompt": "x"}]}', "sink must be"),
        ('{"seed": 0, "steps": 2, "sink": "ema", "cues": [{"chunk": 0, "prompt": " "}]}', "empty"),
    ],
)
def test_a_script_that_makes_no_sense_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_script(text)
