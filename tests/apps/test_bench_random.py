"""Speed with random weights: the arithmetic is counted right, and a CPU says what it really ran."""

import argparse
import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fewstep.apps import bench_acceleration, bench_random, bench_ratios, bench_uncached, cli
from fewstep.core.attention import use_backend
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.random_weights import REDUCED, SHAPES, chunk_flops, random_model, shape_of
from fewstep.modalities.video.rollout import ChunkRollout
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer


def test_the_papers_arithmetic_is_that_of_the_specified_shape() -> None:
    """A chunk of Reward Forcing at 832x480: five passes of 24.3 TFLOP, three frames of 1560 tokens."""
    flops = chunk_flops(SHAPES["wan2.1-1.3b"].transformer, tokens=1560, chunk=3, window=9, passes=5)
    assert flops == pytest.approx(121.3e12, rel=0.01)


def test_counted_operations_are_the_formulas() -> None:
    config = TransformerConfig(dim=64, ffn_dim=256, num_layers=3, num_heads=2, text_dim=32)
    network = VideoTransformer(config).eval()
    text = network.text_keys_values(torch.randn(1, 20, 32))
    x, t = torch.randn(1, 3, 16, 8, 12), torch.full((1, 3), 0.5)
    with torch.no_grad(), use_backend("matmul"):
        times = network.modulations(t)
        with FlopCounterMode(display=False) as counter:
            network.forward_chunk(x, times, text, past=None, position=0)
    expected = chunk_flops(config, tokens=24, chunk=3, window=3, passes=1, text=20)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_the_recipe_decides_how_a_random_model_generates() -> None:
    model = random_model(REDUCED, recipe_name="longlive", light=True, device="cpu")
    assert (model.cache_config.window, model.cache_config.sink_mode, model.default_steps) == (12, "first", 4)
    assert isinstance(ChunkRollout(model.student, model.step_grids[4]), ChunkRollout)
    assert model.chunk_frames == 12


def test_an_unknown_shape_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no random weights for 'x'; there are wan2.1-1.3b, wan2.1-14b"):
        shape_of("x", reduced=True)


@pytest.mark.slow
def test_two_ranks_of_torchrun_measure_one_stream(tmp_path: Path) -> None:
    out = tmp_path / "records.json"
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "fewstep.apps.cli", "bench", "stream", "--model", "wan2.1-1.3b", "--random-weights"]
    command += ["--quick", "--compare", "none", "--json", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.count("fps_end_to_end:") == 1  # the first rank's definitions
    records = {record["name"]: record for record in json.loads(out.read_text())}
    assert {record["processes"] for record in records.values()} == {2}
    assert records["floor"]["value"] == pytest.approx(
        1000 * records["arithmetic"]["value"] / records["product_speed"]["value"] / 2
    )


def test_accelerations_are_not_compared_by_several_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["bench", "stream", "--model", "wan2.1-1.3b", "--random-weights"]) == 2
    assert "compared in one process; give several --compare none" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cpu_measures_a_reduced_shape_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "records.json"
    command = ["bench", "stream", "--model", "wan2.1-1.3b", "--random-weights", "--quick", "--json", str(out)]
    command += ["--frames", "60"]
    assert cli.main([*command, "--compare", "overlapped_decoding,last_step"]) == 0
    assert "On cpu: a reduced shape (4 layers of 256, 160x96), not wan2.1-1.3b itself." in (
        capsys.readouterr().out
    )
    found = json.loads(out.read_text())
    records = {record["name"]: record for record in found}
    assert {"fps_end_to_end", "fps_denoise", "time_to_first_frame", "floor", "peak_memory"} <= records.keys()
    assert records["fps_denoise"]["value"] > 0
    assert records["fps_encoded"]["encoded"] == "jpeg+h264"
    assert records["encode_share"]["value"] == pytest.approx(
        records["fps_end_to_end"]["value"] / records["fps_encoded"]["value"]
    )
    assert records["memory_growth"]["frames"] == 60
    assert all(record["reduced"] is True for record in found)
    exact, lossy = (record for record in found if record["name"] == "acceleration")
    assert (exact["acceleration"], exact["levels"], exact["psnr"]) == ("overlapped_decoding", 0, None)
    assert (lossy["acceleration"], lossy["velocity_error"]) == ("last_step", 0.0)
    assert lossy["levels"] > 0


def test_an_acceleration_that_this_device_lacks_is_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["bench", "stream", "--model", "wan2.1-1.3b", "--random-weights", "--accelerate"]
    assert cli.main([*command, "exact"]) == 2
    assert "--accelerate exact: cuda_graphs needs a CUDA device, not cpu" in capsys.readouterr().err
    assert cli.main([*command, "magic"]) == 2
    assert (
        "--accelerate: acceleration 'magic' is unknown; choose from default, exact" in capsys.readouterr().err
    )


@pytest.mark.parametrize(("kept", "growth"), [(0, 0.0), (3, 0.6)])
def test_growth_is_the_largest_memory_over_that_at_the_beginning(
    monkeypatch: pytest.MonkeyPatch, kept: int, growth: float
) -> None:
    """A stream that keeps something of every chunk shows."""
    used = [50]
    stream = argparse.Namespace(step=lambda: used.append(used[-1] + kept))
    monkeypatch.setattr(bench_random, "_bytes_in_use", lambda device: used[-1])
    assert bench_random._growth(stream, 10, "cpu") == pytest.approx(growth)


def test_the_peak_of_memory_is_that_of_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to a first frame takes another one, which would hold a cache of its own."""
    small = replace(
        REDUCED,
        transformer=TransformerConfig(dim=64, ffn_dim=64, num_layers=1, num_heads=2, text_dim=8),
        height=32,
        width=32,
    )
    model = random_model(small, recipe_name="reward-forcing", light=True, device="cpu")
    begun: list[weakref.ref[Any]] = []
    alive: list[list[bool]] = []
    begin = VideoModel.stream

    def stream(self: VideoModel, *args: Any, **kwargs: Any) -> Any:
        alive.append([one() is not None for one in begun])
        made = begin(self, *args, **kwargs)
        begun.append(weakref.ref(made))
        return made

    monkeypatch.setattr(VideoModel, "stream", stream)
    monkeypatch.setattr(bench_random, "_peak_bytes", lambda device: 1e6 * len(begun))
    found: dict[str, float] = {}

    def add(name: str, value: float, unit: str, **settings: Any) -> None:
        found[name] = value

    bench_random.measure(model, small, chunks=2, device="cpu", add=add)
    assert found["peak_memory"] == 1.0
    assert alive == [[], [False]]


def test_random_weights_predict_something() -> None:
    """A head of zeros, as training begins with, would hide every error."""
    model = random_model(REDUCED, recipe_name="reward-forcing", light=True, device="cpu")
    assert model.student.head.head.weight.std() > 0.01


class Made(TorchDispatchMode):
    """Dtypes and sizes of the tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            self.wide = max(self.wide, out.numel())
        return out


@pytest.mark.parametrize("light", [True, False])
def test_weights_are_drawn_in_their_dtype_and_never_wider(light: bool) -> None:
    with Made() as made:
        model = random_model(
            REDUCED, recipe_name="reward-forcing", light=light, device="cpu", dtype=torch.bfloat16
        )
    codec = model.codec
    assert isinstance(codec, torch.nn.Module)
    assert {one.dtype for one in [*model.student.parameters(), *codec.parameters()]} == {torch.bfloat16}
    assert made.wide < 100
    assert torch.get_default_dtype() == torch.float32
    with Made() as widened:  # the control: what it was before
        VideoTransformer(TransformerConfig(dim=64, ffn_dim=64, num_layers=1, num_heads=2)).bfloat16()
    assert widened.wide >= 64 * 64


def test_the_largest_shape_is_made_where_it_is_asked_for() -> None:
    """14 billion weights, none of them here."""
    model = random_model(
        SHAPES["wan2.1-14b"], recipe_name="longlive", light=True, device="meta", dtype=torch.bfloat16
    )
    weights = list(model.student.parameters())
    assert {(one.device.type, one.dtype) for one in weights} == {("meta", torch.bfloat16)}
    assert sum(one.numel() for one in weights) == pytest.approx(14.3e9, rel=0.01)


def test_the_ratios_come_without_the_other_figures(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_ratios, "ROUNDS_QUICK", 1)
    out = tmp_path / "records.json"
    command = [
        "bench",
        "stream",
        "--model",
        str(tiny_model_folder),
        "--ratios",
        "--quick",
        "--json",
        str(out),
    ]
    assert cli.main(command) == 0
    records = json.loads(out.read_text())
    cached = [record for record in records if record["name"] == "speedup_vs_uncached"]
    assert [record["includes"] for record in cached] == ["denoise+cache+decode+jpeg", "denoise+cache"]
    others = [record["acceleration"] for record in records if record["name"] == "acceleration"]
    assert others == bench_acceleration.runnable(bench_ratios.NAMES, "cpu")
    assert {"static_steps", "fused_projections", "static+fused", "overlapped_decoding"} <= set(others)
    assert len(records) == len(cached) + len(others)
    for record in records:
        assert record["unit"] == "x"
        assert record["value"] > 0
        assert {"model", "dtype", "threads", "resolution", "window", "rounds"} <= record.keys()
        assert record["attention"] == "by inputs"  # on a CPU


def test_a_ratio_is_the_time_without_over_the_time_with() -> None:
    without = [{"denoise": 6.0, "decode": 1.0, "encode": 1.0}] * 3
    cached = [{"denoise": 1.0, "cache": 1.0, "decode": 1.0, "encode": 1.0}] * 3
    found: dict[str, float] = {}

    def add(name: str, value: float, unit: str, *, includes: str) -> None:
        found[includes] = value

    bench_uncached.add_speedup(cached, without, add)
    assert found == {"denoise+cache+decode+jpeg": 2.0, "denoise+cache": 3.0}
