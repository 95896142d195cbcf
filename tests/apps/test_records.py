import argparse
import json
import math
from pathlib import Path

import pytest

from fewstep.apps.records import Record, finish, machine_settings, print_table, write_json

RECORDS = [
    Record(name="fps_end_to_end", value=27.25, unit="frames/s", settings={"steps": 1, "device": "cpu"}),
    Record(name="peak_memory", value=123456.0, unit="MB", settings={"steps": 2, "device": "cpu"}),
]


def test_json_is_a_list_of_flat_objects(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_json(path, RECORDS)
    assert json.loads(path.read_text()) == [
        {"name": "fps_end_to_end", "value": 27.25, "unit": "frames/s", "steps": 1, "device": "cpu"},
        {"name": "peak_memory", "value": 123456.0, "unit": "MB", "steps": 2, "device": "cpu"},
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    huge = Record(name="x", value=1.0, unit="", settings={"bound": float("inf")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, [huge])
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_value_that_is_not_finite_is_null() -> None:
    assert Record(name="x", value=math.nan, unit="").flat()["value"] is None


def test_a_setting_may_not_hide_the_value() -> None:
    with pytest.raises(ValueError, match="settings of x redefine value"):
        Record(name="x", value=1.0, unit="", settings={"value": 2})


def test_the_table_shows_each_value_and_shared_settings_once(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(RECORDS, title="speed")
    shown = capsys.readouterr().out
    assert "27.25" in shown
    assert "123,456" in shown
    assert "steps" in shown
    assert shown.count("device cpu") == 1


def test_a_wide_table_is_not_folded_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {f"setting_{index}": f"{'x' * 20}{index}" for index in range(8)}
    print_table([Record(name="a", value=1, unit="", settings=settings), Record(name="b", value=1, unit="")])
    assert "x" * 20 + "7" in capsys.readouterr().out


def test_finish_writes_the_file_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finish(RECORDS, argparse.Namespace(json=None)) == 0
    assert finish(RECORDS, argparse.Namespace(json=tmp_path / "out.json")) == 0
    assert len(json.loads((tmp_path / "out.json").read_text())) == 2
    assert "peak_memory" in capsys.readouterr().out


def test_machine_settings_say_where_and_how_busy() -> None:
    settings = machine_settings()
    assert settings["device"] == "cpu"
    assert settings["threads"] == 1  # conftest.py sets it
    assert isinstance(settings["load_average"], float)
