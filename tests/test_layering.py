"""The rooms depend one way: core <- modalities <- streaming <- apps."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "modalities", "streaming", "apps")
DATA_ROOM = "configs"  # everybody may read it


def imported_modules(source: str) -> set[str]:
    """Absolute names of everything that ``source`` imports, at any depth, relative imports as ``.``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "fewstep" else {module}
    return names


def violations(root: Path) -> list[str]:
    """Imports in the rooms under ``root`` that point to a later room, or are relative or bare."""
    found = []
    for position, room in enumerate(ROOMS):
        later = ROOMS[position + 1 :]
        for path in sorted((root / room).rglob("*.py")):
            for name in sorted(imported_modules(path.read_text())):
                parts = name.split(".")
                upward = parts[0] == "fewstep" and len(parts) > 1 and parts[1] in later
                if upward or parts[0] == "" or parts[0] in (*ROOMS, DATA_ROOM):
                    found.append(f"{path.relative_to(root)} imports {name}")
    return found


def test_no_room_imports_a_later_one() -> None:
    assert violations(ROOT) == []


def test_core_knows_no_library_of_a_modality_or_a_server() -> None:
    heavy = {"av", "cv2", "diffusers", "fastapi", "gymnasium", "PIL", "sentence_transformers", "transformers"}
    names = {
        name.split(".")[0]
        for path in (ROOT / "core").rglob("*.py")
        if "rewards" not in path.parts  # judges that are language models load them
        for name in imported_modules(path.read_text())
    }
    assert names & heavy == set()


@pytest.mark.parametrize(
    ("room", "statement"),
    [
        ("core", "import fewstep.modalities.video"),
        ("core", "from fewstep.streaming import engine"),
        ("modalities", "from fewstep import apps"),
        ("streaming", "def late():\n    from fewstep.apps.cli import main"),
        ("apps", "from core.paths import LinearPath"),
        ("apps", "from . import cli"),
    ],
)
def test_a_wrong_import_would_be_found(tmp_path: Path, room: str, statement: str) -> None:
    (tmp_path / room).mkdir()
    (tmp_path / room / "module.py").write_text(statement + "\n")
    assert len(violations(tmp_path)) == 1


def test_the_allowed_direction_is_not_reported(tmp_path: Path) -> None:
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps" / "module.py").write_text(
        "from fewstep.streaming.engine import Engine\nimport numpy\n"
    )
    assert violations(tmp_path) == []
