"""What 3D tests share: small rendered objects, a small text model."""

import importlib.util
from pathlib import Path

import pytest

from fewstep.apps.cli import main

RESOLUTION = 8


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six objects to train on, two to validate with: 8 voxels per axis, two views of 16 pixels."""
    root = tmp_path_factory.mktemp("shapes")
    sizes = ("--size", "16", "--resolution", str(RESOLUTION), "--views", "2", "--workers", "1")
    for split, count in (("train", 6), ("val", 2)):
        arguments = ["render", str(root), "--world", "shapes", "--split", split, "--count", str(count)]
        assert main([*arguments, *sizes]) == 0
    return root


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """A small random text model of CLIP's class, with its tokenizer."""
    spec = importlib.util.spec_from_file_location("nano_clip", Path(__file__).with_name("nano_clip.py"))
    assert spec is not None
    assert spec.loader is not None
    nano_clip = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nano_clip)
    (tmp_path / "clip").mkdir()
    return nano_clip.save(tmp_path / "clip")
