"""What the pages with shapes draw with: libraries from npm, committed as built, with their licences."""

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
VIEWERS = ROOT / "apps" / "viewers"
VENDOR, BUNDLE = VIEWERS / "vendor", VIEWERS / "bundle"
MOST_BYTES = {"three.js": 750_000, "3dmol.js": 560_000}


@pytest.fixture
def manifest() -> dict[str, Any]:
    return json.loads((VENDOR / "manifest.json").read_text())


def test_the_committed_bundles_are_those_of_the_manifest(manifest: dict[str, Any]):
    assert {path.name for path in VENDOR.iterdir()} == {"manifest.json", *manifest}
    for name, entry in manifest.items():
        content = (VENDOR / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], (
            f"{name} is not what make viewers wrote"
        )
        assert len(content) <= MOST_BYTES.get(name, 20_000)


def test_they_were_built_from_the_locked_versions(manifest: dict[str, Any]):
    locked = json.loads((BUNDLE / "package-lock.json").read_text())["packages"]
    package = json.loads((BUNDLE / "package.json").read_text())
    wanted = package["dependencies"] | package["devDependencies"]
    assert {name: locked[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    for name, entry in locked.items():
        assert not name or entry["integrity"].startswith("sha512-")
    for entry in manifest.values():
        assert entry["packages"] == {
            name: locked[f"node_modules/{name}"]["version"] for name in entry["packages"]
        }


def test_each_bundle_brings_the_licence_of_all_that_is_in_it(manifest: dict[str, Any]):
    bundles = {name: entry["packages"] for name, entry in manifest.items() if name.endswith(".js")}
    assert set(bundles) == set(MOST_BYTES)
    for name, packages in bundles.items():
        text = (VENDOR / name.replace(".js", ".LICENSE.txt")).read_text()
        parts = text.split("=" * 80)[1:]
        headings = [part.strip() for part in parts[::2]]
        assert [heading.rsplit(" (")[0] for heading in headings] == [
            f"{package} {version}" for package, version in packages.items()
        ]
        for licence in parts[1::2]:
            assert "copyright notice" in licence
            assert "AS IS" in licence


def palettes(path: Path) -> list[dict[str, str]]:
    """The colours of a style sheet by their names: dark ones, then light ones."""
    dark, light = path.read_text().split("@media (prefers-color-scheme: light)")
    light = light[: light.index("}\n}")]
    return [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", text)) for text in (dark, light)]


def test_pages_with_shapes_have_the_colours_of_the_streams_page():
    streams = palettes(ROOT / "apps" / "web" / "css" / "base.css")
    for own, known in zip(palettes(VIEWERS / "viewer.css"), streams, strict=True):
        assert len(own) == 12
        assert own.items() <= known.items()


def test_they_are_in_the_wheel():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "viewers/**" in settings["tool"]["setuptools"]["package-data"]["*"]
