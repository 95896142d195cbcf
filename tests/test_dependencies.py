"""What pyproject.toml asks for is what the code imports, and each extra is told by its name."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewstep.apps.doctor import OPTIONAL

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "modalities", "streaming", "apps", "configs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
FOR_DEVELOPERS = {"test", "dev"}

# distributions whose modules have other names, and modules that come with another distribution
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "pygame": "gymnasium", "starlette": "fastapi"}
TOLD = re.compile(r"fewstep\[([\w,-]+)\]|'\.\[([\w,-]+)\]'")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[\[<>=;\s]", requirement, maxsplit=1)[0]) for requirement in requirements}


def imported(node: ast.AST) -> Iterator[str]:
    """First names of the modules that are imported when the code runs, wherever in it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield child.module.partition(".")[0]
        yield from imported(child)


@pytest.fixture(scope="module")
def used() -> set[str]:
    """Distributions that the package imports by an import statement."""
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    modules = {module for path in files for module in imported(ast.parse(path.read_text()))}
    ours = set(sys.stdlib_module_names) | {"fewstep"}
    return {normal(DISTRIBUTIONS.get(module, module)) for module in modules - ours}


def test_all_that_is_imported_is_asked_for(used: set[str]) -> None:
    optional = [one for extra, listed in EXTRAS.items() if extra not in FOR_DEVELOPERS for one in listed]
    assert sorted(used - names(PROJECT["dependencies"]) - names(optional)) == []


def test_the_doctor_knows_every_extra_by_its_name() -> None:
    hints = {(normal(one.distribution), one.install) for one in OPTIONAL if "fewstep[" in one.install}
    hints.discard(("box2d", "pip install 'fewstep[data]'"))  # that of gymnasium[box2d]
    listed = {
        (name, f"pip install 'fewstep[{extra}]'")
        for extra, requirements in EXTRAS.items()
        if extra not in FOR_DEVELOPERS
        for name in names(requirements)
    }
    assert hints == listed


def test_extras_that_messages_and_pages_name_exist() -> None:
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    files = [path for room in (*ROOMS, "tests") for path in (ROOT / room).rglob("*.py")]
    told = {
        extra
        for path in (*pages, *files)
        if path != Path(__file__).resolve()
        for found in TOLD.finditer(path.read_text())
        for extra in "".join(filter(None, found.groups())).split(",")
    }
    assert told > {"data", "three-d", "webrtc"}
    assert sorted(told - set(EXTRAS)) == []
