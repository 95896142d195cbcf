"""What the benchmark of meshes measures, and that it waits for it."""

from typing import Any

import pytest

from fewstep.apps import bench_mesh, bench_random
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
