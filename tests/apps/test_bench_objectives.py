"""`fewstep bench objectives`: means over seeds, the README's table, and a run that goes on."""

import importlib.util
from pathlib import Path

import pytest

from fewstep.apps.bench_objectives import over_seeds, readme_table
from fewstep.apps.cli import main
from fewstep.apps.records import Record


def score(name: str, value: float, *, method: str = "DMD", steps: int = 1, seed: int = 0) -> Record:
    return Record(name=name, value=value, unit="", settings={"method": method, "steps": steps, "seed": seed})


def test_seeds_are_averaged_and_the_distance_shows_their_range() -> None:
    means = over_seeds(
        [
            score("sliced_wasserstein", 0.25, seed=0),
            score("in_mode", 90.0, seed=0),
            score("sliced_wasserstein", 0.75, seed=1),
            score("in_mode", 94.0, seed=1),
            score("sliced_wasserstein", 0.5, steps=2),
        ]
    )
    assert [(r.name, r.value, r.settings["steps"]) for r in means] == [
        ("sliced_wasserstein", 0.5, 1),
        ("over_seeds", 0.5, 1),
        ("in_mode", 92.0, 1),
        ("sliced_wasserstein", 0.5, 2),
        ("over_seeds", 0.0, 2),
    ]
    assert "seed" not in means[0].settings


def test_the_readmes_table_has_a_line_per_method() -> None:
    table = readme_table(
        [
            score("sliced_wasserstein", 0.0061, method="real", steps=0),
            score("sliced_wasserstein", 0.0642),
            score("sliced_wasserstein", 0.0791, steps=2),
            score("seconds", 28.2),
            score("seconds", 29.4, steps=2),
            score("seconds", 29.0, steps=4),
            *(score("seconds", 66.4, method="MDT, VM", steps=steps) for steps in (1, 2, 4)),
        ]
    )
    head, rule, real, dmd, mdt = table.splitlines()
    assert len({line.count("|") for line in (head, rule, real, dmd, mdt)}) == 1
    assert real.startswith("| real | 0.006 |  |  |")
    assert dmd.startswith("| DMD | 0.064 | 0.079 |  |")
    assert dmd.endswith("| 28 / 29 / 29 |")
    assert mdt.endswith("| 66 |")


def test_a_quick_run_goes_on_from_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second run trains nothing: its seconds, to all digits, are the first one's."""
    command = ["bench", "objectives", "--quick", "--methods", "LCM", "--steps", "1"]
    keep = ["--keep", str(tmp_path / "kept")]
    tables = []
    for number in ("first", "second"):
        out = [f"--json={tmp_path / number}.json", f"--markdown={tmp_path / number}.md"]
        assert main([*command, *keep, *out]) == 0
        tables.append((tmp_path / f"{number}.md").read_text())
    assert tables[0] == tables[1]
    assert "| LCM |" in tables[0]
    kept = [
        [line for line in (tmp_path / f"{number}.json").read_text().splitlines() if '"value"' in line]
        for number in ("first", "second")
    ]
    assert kept[0] == kept[1]
    assert "over" in capsys.readouterr().out


def test_a_table_into_no_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "objectives", "--quick", "--markdown", str(tmp_path / "no" / "t.md")]) != 0
    assert "--markdown" in capsys.readouterr().err


def test_a_picture_without_matplotlib_is_refused_before_the_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    picture, records = tmp_path / "all.png", tmp_path / "records.json"
    command = ["bench", "objectives", "--quick", "--methods", "LCM", "--steps", "1"]
    assert main([*command, f"--picture={picture}", f"--json={records}"]) == 2
    assert capsys.readouterr().err.endswith("pip install 'fewstep[train]'\n")
    assert not records.exists()
