"""The wheel and the source archive hold every file that the tree holds, once."""

import shutil
import subprocess
import sys
import tarfile
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


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what is packed, without the links in ``fewstep/``."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source / name)
    (source / "fewstep").mkdir()
    for name in ("__init__.py", "py.typed"):
        shutil.copy(ROOT / "fewstep" / name, source / "fewstep" / name)
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=IGNORED)
    return source


def test_the_wheel_holds_every_file_of_the_tree(source: Path, tmp_path: Path) -> None:
    expected = {"fewstep/__init__.py", "fewstep/py.typed"}
    for room in ROOMS:
        for path in (source / room).rglob("*"):
            if path.is_file():
                expected.add(f"fewstep/{path.relative_to(source).as_posix()}")

    wheel = build_wheel(source, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("fewstep/")}
    assert packed == expected


def test_the_source_archive_holds_every_file_once(source: Path, tmp_path: Path) -> None:
    """Through the links in ``fewstep/`` it would hold every weight twice, and be too large for an index."""
    for weights in source.rglob("*.safetensors"):
        weights.write_bytes(b"")  # their names are enough
    expected = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    for room in ROOMS:
        (source / "fewstep" / room).symlink_to(Path("..") / room)
    (source / "tests").mkdir()
    (source / "tests" / "test_alone.py").touch()

    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    ended = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (archive,) = tmp_path.glob("fewstep-*.tar.gz")
    with tarfile.open(archive) as packed:
        names = [member.name.partition("/")[2] for member in packed.getmembers() if member.isfile()]
    made = {"PKG-INFO", "setup.cfg", *(name for name in names if name.startswith("fewstep.egg-info/"))}
    assert sorted(set(names) - made) == sorted(expected)


@pytest.mark.parametrize("suffix", [".yaml", ".json", ".safetensors", ".png"])
def test_data_of_every_kind_we_ship_is_declared(suffix: str) -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"**/*{suffix}" in settings["tool"]["setuptools"]["package-data"]["*"]
