"""The table of accelerations: which are measured, and what is said of each."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fewstep.apps import bench_acceleration
from fewstep.apps.bench_acceleration import compared, measure
from fewstep.modalities.video import fidelity
from fewstep.modalities.video.acceleration import PLAIN, SWITCHES
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.transformer import VideoTransformer


def test_without_names_everything_that_the_device_can_do_is_compared(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = compared(None, "cpu")
    assert {"fused_projections", "merged_passes", "static_steps", "overlapped_decoding", "last_step"} <= set(
        found
    )
    assert not {"compiled", "cuda_graphs", "fused_kernels", "fp8", "exact"} & set(found)
    said = capsys.readouterr().out
    assert "cuda_graphs: not measured; cuda_graphs needs a CUDA device, not cpu" in said
    assert "compiled: not measured; compiling for a CPU takes minutes; name it" in said
    assert compared("compiled,last_step", "cpu") == ["compiled", "last_step"]
    assert compared("none", "cpu") == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("last_step,warp", "--compare 'warp' is unknown; choose from default, exact"),
        ("fp8", "--compare fp8: quantization='fp8' needs"),
    ],
)
def test_names_that_cannot_be_measured_are_refused(names: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compared(names, "cpu")


def test_each_is_a_record_of_its_gain_and_its_error(tiny_model_folder: Path) -> None:
    model = VideoModel.load(tiny_model_folder, acceleration=PLAIN)
    records: list[tuple[str, float, str, dict[str, Any]]] = []

    def add(name: str, value: float, unit: str, **settings: Any) -> None:
        records.append((name, value, unit, settings))

    names = ["static_steps", "last_step"]
    features = model.encode_prompt(model.default_prompt)
    measure(model, features, names, rounds=1, add=add, wait=lambda: None)
    for name, (record, gain, unit, settings) in zip(names, records, strict=True):
        assert (record, unit, settings["acceleration"]) == ("acceleration", "x", name)
        assert gain == pytest.approx(settings["plain_ms"] / settings["ms"])
    exact, lossy = (settings for *_, settings in records)
    assert exact["levels"] <= 8  # bfloat16 where the processor has it
    assert lossy["velocity_error"] == 0.0
    assert lossy["first_psnr"] is None  # the first chunk has no past
    assert lossy["psnr"] < 60.0


def test_none_is_begun_once_the_time_of_a_run_is_over(
    tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = VideoModel.load(tiny_model_folder, acceleration=PLAIN)
    features = model.encode_prompt(model.default_prompt)
    added: list[str] = []

    def add(name: str, *args: object, **settings: Any) -> None:
        added.append(settings["acceleration"])

    for until in (time.perf_counter() - 1.0, time.perf_counter() + 1e9):
        measure(model, features, ["last_step"], rounds=1, add=add, wait=lambda: None, until=until)
    assert added == ["last_step"]
    assert "last_step: not measured; the time of this run is over; name it with --compare" in (
        capsys.readouterr().out
    )


def test_the_plain_stream_is_made_once_and_what_was_compiled_is_forgotten_in_between(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch compiles layers for eight kinds of inputs at most; three accelerations ask for nine."""
    order: list[str] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: order.append("reset"))
    monkeypatch.setattr(VideoTransformer, "compile_blocks", lambda self: order.append("compile"))
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: None)
    velocity = fidelity._velocity

    def counted(model: VideoModel, *args: Any) -> torch.Tensor:
        if model.acceleration == PLAIN:
            order.append("plain")
        return velocity(model, *args)

    monkeypatch.setattr(fidelity, "_velocity", counted)
    model = VideoModel.load(tiny_model_folder, acceleration=PLAIN)
    features = model.encode_prompt(model.default_prompt)
    names = ["compiled", "compiled", "last_step"]
    measure(model, features, names, rounds=1, add=lambda *a, **k: None, wait=lambda: None)
    assert order == ["plain"] * model.default_steps + ["reset", "compile"] * 2


def test_every_acceleration_has_a_name_of_its_own() -> None:
    assert len(set(SWITCHES.values())) == len(SWITCHES)
    assert "acceleration: seconds per chunk" in bench_acceleration.DEFINITIONS
