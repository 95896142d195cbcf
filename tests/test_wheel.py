"""The wheel holds every file that the tree holds."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "modalities", "streaming", "apps", "configs")
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def build_wheel(source: Path, into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    ended = subprocess.run([*command, "--wheel-dir", str(into), str(source)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (wheel,) = into.glob("fewstep-*.whl")
    return wheel


def test_the_wheel_holds_every_file_of_the_tree(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source / name)
    (source / "fewstep").mkdir()
    for name in ("__init__.py", "py.typed"):
        shutil.copy(ROOT / "fewstep" / name, source / "fewstep" / name)
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=IGNORED)

    expected = {"fewstep/__init__.py", "fewstep/py.typed"}
    for room in ROOMS:
        for path in (source / room).rglob("*"):
            if path.is_file():
                expected.add(f"fewstep/{path.relative_to(source).as_posix()}")

    wheel = build_wheel(source, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("fewstep/")}
    assert packed == expected


@pytest.mark.parametrize("suffix", [".yaml", ".json", ".safetensors", ".png"])
def test_data_of_every_kind_we_ship_is_declared(suffix: str) -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"**/*{suffix}" in settings["tool"]["setuptools"]["package-data"]["*"]
