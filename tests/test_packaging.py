"""The installed package is importable as ``fewstep`` and takes no bare top-level names."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "modalities", "streaming", "apps", "configs")


def run_elsewhere(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a new interpreter whose working directory is ``folder``."""
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_imports_from_an_empty_folder(room: str, tmp_path: Path) -> None:
    ended = run_elsewhere(f"import fewstep.{room}; print(fewstep.{room}.__file__)", tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert Path(ended.stdout.strip()).resolve() == ROOT / room / "__init__.py"


@pytest.mark.parametrize("room", ROOMS)
def test_a_bare_room_name_is_not_ours(room: str, tmp_path: Path) -> None:
    code = f"import importlib.util as u; s = u.find_spec({room!r}); print(s.origin if s else '')"
    ended = run_elsewhere(code, tmp_path)
    assert ended.returncode == 0, ended.stderr
    origin = ended.stdout.strip()
    assert not origin or ROOT not in Path(origin).resolve().parents or "site-packages" in origin


@pytest.mark.parametrize("room", ROOMS)
def test_the_face_links_to_every_room(room: str) -> None:
    link = ROOT / "fewstep" / room
    assert link.is_symlink()
    assert link.resolve() == ROOT / room


def test_every_code_folder_is_a_package() -> None:
    folders = {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
