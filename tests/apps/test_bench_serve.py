"""The server's benchmark on the synthetic model: every scenario runs, ends, and reports what it defines."""

import asyncio
import sys
from pathlib import Path

import pytest

from fewstep.apps.bench_serve import DEFINITIONS, Plan, measure, started_server

TINY = Plan(viewers=3, seconds=1.5, stall=0.5, sessions=2, turn=0.2, reconnects=6, storm=0.5)


@pytest.mark.slow
def test_every_scenario_runs_and_reports() -> None:
    script = Path(__file__).with_name("serve_synthetic.py")
    with started_server([], [sys.executable, "-P", str(script)]) as server:
        records = asyncio.run(measure(server, TINY, model="synthetic"))
    keys = {(record.name, record.unit, *record.settings.values()) for record in records}
    named = {record.name for record in records}
    assert {name for name in named if name not in DEFINITIONS} == set()
    by_name = {record.name: record.value for record in records}
    assert by_name["queue_order"] == 100
    assert by_name["reconnects_refused"] == 0
    left = {record.unit: record.value for record in records if record.name == "left_over"}
    assert left["viewers"] == 0
    assert left["files"] <= 2
    assert len(keys) == len(records)
