import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.apps import bench_process, bench_stream
from fewstep.apps.cli import main
from fewstep.modalities.video.pipeline import VideoModel

TINY = bench_stream.Plan(chunks=3, rounds=2, teacher_clips=1, starts=2, long_frames=72)


def test_every_figure_is_measured_for_every_number_of_steps_and_says_what_it_is(
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(bench_stream, "QUICK", TINY)
    path = tmp_path / "bench.json"
    command = ["bench", "stream", "--model", str(tiny_model_folder), "--quick", "--json", str(path)]
    assert main([*command, "--compare", "none"]) == 0
    records: list[dict[str, Any]] = json.loads(path.read_text())
    shared = {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(VideoModel.load(tiny_model_folder).dtype).removeprefix("torch."),
        "resolution": "96x96",
        "sink": "ema",
        "seed": 0,
    }
    assert all({key: record[key] for key in shared} == shared for record in records)
    assert all(record["value"] is not None for record in records)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_name.setdefault(record["name"], []).append(record)
    for name in ("fps_end_to_end", "realtime_factor", "frame_interval_p50", "frame_interval_p99"):
        assert [record["steps"] for record in by_name[name]] == [1, 2]
        assert {record["includes"] for record in by_name[name]} == {"denoise+cache+decode+jpeg"}
    for record, ratio in zip(by_name["fps_end_to_end"], by_name["realtime_factor"], strict=True):
        assert ratio["value"] == pytest.approx(record["value"] / 12.0)
        stages = [stage["value"] for stage in by_name["stage_time"] if stage.get("steps") == record["steps"]]
        assert len(stages) == 4
        assert sum(stages) == pytest.approx(1000 / record["value"])
    starts = {(record["steps"], record["start"]) for record in by_name["time_to_first_frame"]}
    assert starts == {(1, "warm"), (2, "warm"), (2, "cold")}
    assert {record["includes"] for record in by_name["speedup_vs_uncached"]} == {
        "denoise+cache",
        "denoise+cache+decode+jpeg",
    }
    teachers = by_name["speedup_vs_teacher"]
    assert [(one["steps"], one["teacher_steps"], one["teacher_guidance"]) for one in teachers] == [
        (1, 3, 2.5),
        (2, 3, 2.5),
    ]
    (growth,) = by_name["memory_growth"]
    assert growth["frames"] == TINY.long_frames
    assert growth["value"] >= 0
    (peak,) = by_name["peak_memory"]
    assert peak["value"] > 100  # a process with torch cannot be smaller
    assert "fps_end_to_end: frames per second" in capsys.readouterr().out


def test_a_student_without_its_teacher_is_measured_without_it(tiny_model_folder: Path, tmp_path: Path):
    folder = shutil.copytree(
        tiny_model_folder, tmp_path / "student", ignore=shutil.ignore_patterns("teacher")
    )
    records: dict[str, int] = {}

    def add(name: str, value: float, unit: str, **settings: Any) -> None:
        records[name] = records.get(name, 0) + 1

    bench_stream._comparisons(VideoModel.load(folder), TINY, add)
    assert records == {"speedup_vs_uncached": 4}  # two figures of either number of steps


def test_intervals_are_percentiles_over_frames():
    assert bench_stream._percentile([1.0] * 98 + [5.0, 9.0], 50) == 1.0
    assert bench_stream._percentile([float(value) for value in range(101)], 99) == 99.0


def test_threads_are_set_while_measuring_and_put_back():
    before = torch.get_num_threads()
    with bench_stream.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--model", "nowhere"], "no video model 'nowhere'"),
        (["--model", "wan2.1-1.3b"], "a shape without weights; add --random-weights"),
        (["--accelerate", "fp8", "--frames", "9"], "--accelerate, --frames goes with --random-weights"),
        (
            ["--random-weights", "--model", "wan2.1-1.3b", "--frames", "0"],
            "--frames must be at least 1, got 0",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "stream", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_memory_of_this_process_is_in_bytes_and_never_above_its_peak():
    megabytes = torch.ones(50_000_000, dtype=torch.uint8)
    assert 100e6 < bench_process.resident_bytes() < 100e9
    assert bench_process.resident_bytes() <= bench_process.peak_bytes()
    del megabytes


def test_the_help_states_the_definitions():
    parser = argparse.ArgumentParser()
    bench_stream.add_arguments(parser)
    assert "speedup_vs_teacher: frames per second of the stream" in parser.format_help()
