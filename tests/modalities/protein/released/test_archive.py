"""Reading torch's archives: what is in them, and what must not be run."""

import builtins
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fewstep.modalities.protein.released.archive import StandIn, open_archive


class Call:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (os.system, "touch {}", "system"),
        (builtins.eval, "open({!r}, 'w')", "eval"),
        (builtins.exec, "open({!r}, 'w')", "exec"),
        (builtins.__import__, "antigravity", "__import__"),
        (os.mkdir, "{}", "mkdir"),
    ],
)
@pytest.mark.parametrize("where", ["state_dict", "optimizer_states", "hyper_parameters"])
def test_a_pickle_that_calls_functions_is_refused_and_none_is_called(
    tmp_path: Path, function: Callable[..., Any], argument: str, name: str, where: str
) -> None:
    sign = tmp_path / "was run"
    content: dict[str, object] = {"state_dict": {"nn.x": torch.zeros(2)}}
    content[where] = {"nn.x": Call(function, argument.format(str(sign)))}
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=rf"evil\.ckpt names \w+\.{name}, which no checkpoint needs"):
        open_archive(tmp_path / "evil.ckpt")
    assert not sign.exists()


def test_the_attack_works_where_nobody_looks(tmp_path: Path) -> None:
    """The control of the test above: Python's own unpickler runs what the file says."""
    sign = tmp_path / "was run"
    torch.save({"x": Call(os.mkdir, str(sign))}, tmp_path / "evil.ckpt")
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert sign.is_dir()


def test_a_function_of_a_known_package_becomes_a_stand_in_and_is_not_called(tmp_path: Path) -> None:
    sign = tmp_path / "was run"
    torch.save({"x": Call(torch.save, [1], str(sign))}, tmp_path / "odd.ckpt")
    found = open_archive(tmp_path / "odd.ckpt").content["x"]
    assert isinstance(found, StandIn)
    assert not sign.exists()


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(3, 4),
        torch.randn(3, 4, dtype=torch.float64),
        torch.randn(3).to(torch.bfloat16),
        torch.randn(3).half(),
        torch.arange(5),
        torch.tensor([True, False]),
        torch.tensor(2.5),
        torch.empty(0, 3),
        torch.randn(4, 6)[1:3, ::2],
        torch.randn(4, 6).t(),
        nn.Parameter(torch.randn(2, 2)),
    ],
    ids=lambda value: f"{value.dtype} {list(value.shape)} {value.stride()}",
)
def test_tensors_come_back_as_they_were(tmp_path: Path, value: torch.Tensor) -> None:
    torch.save({"x": value}, tmp_path / "x.ckpt")
    archive = open_archive(tmp_path / "x.ckpt")
    found = archive.tensors(archive.content)["x"]
    torch.testing.assert_close(found, value.detach(), atol=0, rtol=0)
    assert found.dtype == value.dtype


def test_tensors_that_share_memory_come_back_apart(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    torch.save({"x": shared[:3], "y": shared[3:]}, tmp_path / "x.ckpt")
    archive = open_archive(tmp_path / "x.ckpt")
    found = archive.tensors(archive.content)
    assert found["x"].tolist() == [0, 1, 2]
    assert found["y"].tolist() == [3, 4, 5]
    assert found["x"].untyped_storage().data_ptr() != found["y"].untyped_storage().data_ptr()


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    torch.save({"weights": {"x": torch.ones(2)}, "moments": {"x": torch.ones(9)}}, tmp_path / "whole.ckpt")
    without(tmp_path / "whole.ckpt", tmp_path / "half.ckpt", "/data/1")
    archive = open_archive(tmp_path / "half.ckpt")
    assert archive.tensors(archive.content["weights"])["x"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="is damaged"):
        archive.tensors(archive.content["moments"])


def without(source: Path, target: Path, record: str) -> None:
    """A copy of an archive that lacks a record."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if not name.endswith(record):
                new.writestr(name, old.read(name))


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    with pytest.raises(FileNotFoundError, match=r"x\.ckpt is missing"):
        open_archive(path)
    path.write_text("no archive")
    with pytest.raises(ValueError, match="is no archive of torch"):
        open_archive(path)
    torch.save({"x": torch.randn(1000)}, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="is no archive of torch"):
        open_archive(path)
    torch.save({"x": torch.randn(1000)}, path)
    without(path, tmp_path / "y.ckpt", "data.pkl")
    with pytest.raises(ValueError, match="cannot be read"):
        open_archive(tmp_path / "y.ckpt")


def test_a_tensor_beyond_its_record_is_an_error(tmp_path: Path) -> None:
    torch.save({"x": torch.randn(1000)}, tmp_path / "x.ckpt")
    with zipfile.ZipFile(tmp_path / "x.ckpt") as old, zipfile.ZipFile(tmp_path / "y.ckpt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name)[:16] if name.endswith("/data/0") else old.read(name))
    archive = open_archive(tmp_path / "y.ckpt")
    with pytest.raises(ValueError, match="is damaged"):
        archive.tensors(archive.content)
