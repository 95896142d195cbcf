"""A folder of small rendered objects that all 3D tests read."""

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
