"""What the benchmark of meshes measures, and that it waits for it."""

import json
from pathlib import Path
from typing import Any

import pytest

from fewstep.apps import bench_mesh, bench_random
from fewstep.apps.cli import main
from fewstep.modalities.shape3d.surface import dense, flexicubes


def test_a_surface_has_taken_as_long_as_its_device_was_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graphics card returns at once and works on; here the work is done only when it is waited for."""
    clock, queued, asked = [0.0], [0.0], []

    def wait() -> None:
        clock[0] += queued[0]
        queued[0] = 0.0

    def waiter(device: str) -> Any:
        asked.append(device)
        return wait

    def surface(seconds: float) -> Any:
        def extract(_: Any) -> None:
            queued[0] += seconds

        return extract

    queued[0] = 100.0  # what another left running is nobody's
    monkeypatch.setattr(bench_random, "waiter", waiter)
    monkeypatch.setattr(bench_mesh.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(bench_mesh, "_largest_memory", lambda extract, cells: 1.0)
    monkeypatch.setattr(flexicubes, "extract_surface", surface(1.0))
    monkeypatch.setattr(dense, "extract_surface_densely", surface(8.0))
    assert bench_mesh.surface_ratios(bench_mesh.cells_of_ball(16)) == (8.0, 1.0)
    assert asked == ["cpu"]


def test_the_bench_compares_student_and_teacher_stage_by_stage(
    mesh_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert (
        main(["bench", "mesh", "--quick", "--model", str(mesh_folder), "--json", str(tmp_path / "a.json")])
        == 0
    )
    records = json.loads((tmp_path / "a.json").read_text())
    rows = {
        (row["name"], row.get("source"), row.get("steps"), row.get("stage")): row["value"] for row in records
    }
    for source, steps, nfe in (("student", "1x2", 3), ("student", "2x2", 4), ("teacher", "3x3", 12)):
        stages = [value for key, value in rows.items() if key[:3] == ("stage_time", source, steps)]
        assert len(stages) == 7
        assert all(value > 0 for value in stages)
        whole = rows["seconds_per_mesh", source, steps, None]
        assert whole == pytest.approx(sum(stages), rel=0.5)
        assert rows["nfe", source, steps, None] == nfe
        if source == "student":
            teacher = rows["seconds_per_mesh", "teacher", "3x3", None]
            assert rows["speedup_vs_teacher", source, steps, None] == pytest.approx(teacher / whole)
    assert rows["surface_memory_ratio", None, None, None] > 0.5
    assert "seconds_per_mesh" in capsys.readouterr().out


def test_students_that_are_given_are_measured_against_the_folder(mesh_folder: Path, tmp_path: Path):
    options = ["--quick", "--json", str(tmp_path / "a.json")]
    student = ["--structure-student", str(mesh_folder / "ckpts" / "sparse_structure_flow_model.safetensors")]
    student += ["--latent-student", str(mesh_folder / "ckpts" / "slat_flow_model.safetensors")]
    alone = mesh_folder / "teacher"  # one pipeline, as TRELLIS's own folders are
    assert main(["bench", "mesh", "--model", str(alone), *options, *student]) == 0
    records = json.loads((tmp_path / "a.json").read_text())
    nfe = {(row["source"], row["steps"]): row["value"] for row in records if row["name"] == "nfe"}
    assert nfe == {("student", "1x2"): 3, ("student", "2x2"): 4, ("teacher", "3x3"): 12}
    assert all(row["slat_flow_model"] == "slat_flow_model.safetensors" for row in records)


def test_the_bench_refuses_what_makes_no_sense(mesh_folder: Path, capsys: pytest.CaptureFixture[str]):
    for option, said in (("--threads", "at least 1, got 0"), ("--faces", "at least 4, got 0")):
        assert main(["bench", "mesh", "--model", str(mesh_folder), option, "0"]) == 2
        assert said in capsys.readouterr().err
