"""The server's benchmark on the synthetic model: every scenario runs, ends, and reports what it defines."""

import asyncio
import math
import sys
from pathlib import Path

import httpx
import pytest

from fewstep.apps.bench_serve import (
    DEFINITIONS,
    FIRST_PROMPT,
    Goal,
    Plan,
    Report,
    measure,
    percentile,
    summary,
)
from fewstep.apps.serve_load import started_server

TINY = Plan(viewers=3, seconds=1.5, stall=0.5, sessions=3, turn=0.2, reconnects=6, storm=0.5)
JUDGED = {
    "viewer_fps", "frame_interval", "memory_growth", "stall_recovery", "queue_order", "reconnects_refused",
    "left_over",
}  # fmt: skip


@pytest.mark.slow
def test_every_scenario_runs_and_reports() -> None:
    script = Path(__file__).with_name("serve_synthetic.py")
    with started_server([], [sys.executable, "-P", str(script)]) as server:
        records = asyncio.run(measure(server, TINY, model="synthetic"))
        shown = httpx.get(f"http://{server.address}/v1/sessions/live").json()["prompt"]["text"]
    assert shown == FIRST_PROMPT  # the text encoder is there before anything is measured
    keys = {(record.name, record.unit, *record.settings.values()) for record in records}
    named = {record.name for record in records}
    assert {name for name in named if f"{name}: " not in DEFINITIONS} == set()
    assert {record.name for record in records if record.settings["goal"]} == JUDGED
    by_name = {record.name: record for record in records}
    # What does not hang on how busy the machine is.
    for name in ("queue_order", "reconnects_refused", "left_over"):
        assert by_name[name].settings["verdict"] == "met", by_name[name]
    assert by_name["queue_wait"].value > by_name["queue_handover"].value > 0
    assert len(keys) == len(records)


@pytest.mark.parametrize(
    ("goal", "value", "verdict"),
    [
        (Goal(most=0.5), 0.5, "met"),
        (Goal(most=0.5), 0.51, "missed"),
        (Goal(most=0.0), -3.0, "met"),
        (Goal(least=11.4), 11.3, "missed"),
        (Goal(least=100.0), 100.0, "met"),
        (Goal(most=0.5), math.nan, "missed"),
        (Goal(most=0.5), math.inf, "missed"),
    ],
)
def test_a_goal_is_met_or_missed(goal: Goal, value: float, verdict: str) -> None:
    assert goal.verdict(value) == verdict


def test_the_last_line_names_what_was_missed() -> None:
    report = Report(model="none")
    report.add("dropped", 3.0, "%")
    report.add("stall_recovery", 0.1, "s", Goal(most=0.5))
    assert summary(report.records) == "all 1 goals met"
    report.add("left_over", 1, "viewers", Goal(most=0.0))
    assert summary(report.records) == "1 of 2 goals missed: left_over"
    assert report.records[-1].flat()["goal"] == "at most 0"


@pytest.mark.parametrize(("percent", "value"), [(50, 50.0), (99, 99.0), (100, 100.0), (0, 1.0)])
def test_a_percentile_is_one_of_the_values(percent: int, value: float) -> None:
    assert percentile([float(n) for n in range(1, 101)], percent) == value


def test_nothing_has_no_percentile() -> None:
    assert math.isnan(percentile([], 99))
