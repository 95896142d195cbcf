import argparse
import json
import sys
from pathlib import Path

import pytest

from fewstep.apps import doctor
from fewstep.apps.cli import main
from fewstep.apps.doctor import Optional


def test_the_report_has_every_section_on_screen_and_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "doctor.json"
    assert doctor.run(argparse.Namespace(json=path)) == 0
    report = json.loads(path.read_text())
    shown = capsys.readouterr().out
    assert list(report) == ["fewstep", "machine", "attention", "optional", "models"]
    for section in ("machine", "attention", "optional", "models"):
        assert section in shown
        assert all(
            set(found) == {"piece", "works", "detail"} and found["detail"] for found in report[section]
        )
    works = {found["piece"]: found["works"] for found in report["attention"]}
    assert works["sdpa on cpu"] is True
    assert works["flash_attn on cpu"] is False


def test_a_missing_package_says_what_it_would_give_and_how_to_get_it() -> None:
    found = doctor._optional_package(Optional("absent", "absent_package", "wings", "pip install wings"))
    assert not found.works
    assert found.detail == "would give wings: pip install wings"


def test_the_extras_of_a_hint_survive_printing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = Optional("absent", "absent_package", "x", "'fewstep[gpu]'")
    monkeypatch.setattr(doctor, "OPTIONAL", (absent,))
    doctor.run(argparse.Namespace(json=None))
    assert "'fewstep[gpu]'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise OSError('libusb missing')", "OSError: libusb missing"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by signal 11"),
    ],
)
def test_a_package_that_breaks_on_import_is_reported_not_suffered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    (tmp_path / "broken_package.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = doctor._optional_package(Optional("broken", "broken_package", "wings", "pip install wings"))
    assert not found.works
    assert found.detail == f"installed, but its import fails: {reason}"


def test_a_package_that_imports_is_shown_with_its_version() -> None:
    from importlib.metadata import version

    import rich  # any package that is certainly there

    found = doctor._optional_package(Optional("rich", rich.__name__, "tables", ""))
    assert found.works
    assert found.detail == f"{version('rich')}: tables"


def test_bundled_models_are_the_presets_with_a_card(tmp_path: Path) -> None:
    assert [found.works for found in doctor.bundled_models(tmp_path)] == [False]
    preset = tmp_path / "video" / "presets" / "driving"
    (preset / "student").mkdir(parents=True)
    (preset / "pipeline.json").write_text("{}")
    (preset / "student" / "model.safetensors").write_bytes(bytes(2_500_000))
    (tmp_path / "video" / "presets" / "empty").mkdir()
    assert doctor.bundled_models(tmp_path) == [doctor.Found("video/driving", True, "2.5 MB")]


def test_a_file_that_cannot_be_written_is_told_before_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--json", str(tmp_path / "gone" / "x.json")])
    told = capsys.readouterr()
    assert "must be a file in a folder that exists" in told.err
    assert told.out == ""
