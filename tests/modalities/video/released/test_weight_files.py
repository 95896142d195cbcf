"""Containers, prefixes and files: what was released is read by name, and nothing in it is executed."""

import json
import os
import pickle
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from fewstep.modalities.video.released.weight_files import (
    WRAPPERS,
    read_generator,
    read_state,
    read_weights,
    unwrapped,
)

STATE = {"blocks.0.ffn.0.weight": torch.ones(2), "head.modulation": torch.zeros(1)}
OTHER = {name: value + 5 for name, value in STATE.items()}


def named(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


@given(
    container=st.sampled_from([None, "generator", "generator_ema", "model", "state_dict"]),
    wrappers=st.lists(st.sampled_from(WRAPPERS), max_size=3),
    prefix=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_every_container_and_wrapper_of_the_releases_comes_off(
    container: str | None, wrappers: list[str], prefix: bool
) -> None:
    state: dict[str, Any] = named("".join(wrappers) + "model." * prefix)
    found = unwrapped(state if container is None else {container: state, "step": 3}, "f")
    assert found.keys() == STATE.keys()


def test_a_wrapper_between_the_names_comes_off_too() -> None:
    wrapped = {"model.blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.ffn.0.weight": torch.ones(2)}
    assert list(unwrapped(wrapped, "f")) == ["blocks.0.ffn.0.weight"]


def test_averaged_weights_are_taken_unless_the_others_are_asked_for() -> None:
    both = {"critic": OTHER, "generator": named("model."), "generator_ema": named("model.", OTHER)}
    assert unwrapped(both, "f")["head.modulation"] == 5
    assert unwrapped(both, "f", ema=False)["head.modulation"] == 0


def test_two_weights_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"holds head.modulation twice"):
        unwrapped({**STATE, "model.head.modulation": torch.ones(1)}, "f")


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(ValueError, match="nothing but tensors by name; it has step"):
        unwrapped({**STATE, "step": 3}, "f")
    with pytest.raises(ValueError, match="it is empty"):
        unwrapped({}, "f")


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.folder),))


@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_code_in_a_file_is_not_executed(tmp_path: Path, write: str) -> None:
    path, trap = tmp_path / "student.pt", tmp_path / "trap"
    content = {"generator": STATE, "extra": Payload(trap)}
    if write == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))  # the one torch writes
    with pytest.raises(ValueError, match=r"student.pt"):
        read_generator(path)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Payload(trap)))  # the control: this file would have done it
    assert trap.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_each_kind_of_file_gives_the_same_tensors(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path)
    torch.testing.assert_close(read_state(path), STATE, atol=0.0, rtol=0.0)


def test_torchs_older_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    torch.testing.assert_close(read_state(path), STATE, atol=0.0, rtol=0.0)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("gone.pt", None, "gone.pt is missing; download or copy it there"),
        ("w.txt", b"x", r"w.txt is no file of weights; known are .safetensors and .pt"),
        ("w.safetensors", b"{}", "w.safetensors is not a whole safetensors file"),
        ("w.pt", b"", r"w.pt is not a whole file of torch \(\w+"),
        ("w.pt", b"hello", r"w.pt is not a whole file of torch \(\w+"),
        ("w.pt", b"version https://git-lfs.github.com/spec/v1\noid", "w.pt is only the pointer that Git LFS"),
        ("w.pth", b"\x80\x02no", "w.pth"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, name: str, content: bytes | None, named: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=named) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_half_a_file_is_named_wherever_it_ends(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "half.pt"
    torch.save(STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"half.pt .*(copy it again|ask its authors)"):
        read_weights(path)


def test_junk_of_any_kind_is_named(tmp_path: Path) -> None:
    """A pickle is a program; what torch's reader raises for junk is many things."""
    random = Random(0)
    for number in range(300):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(random.randbytes(random.randint(1, 60)))
        with pytest.raises(ValueError, match=rf"{number}.pt "):
            read_weights(path)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; give the file of weights in it"):
        read_weights(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(ValueError, match="is no index of files of weights"):
        read_state(index)


def test_an_index_names_what_is_missing_and_reads_only_its_neighbours(tmp_path: Path) -> None:
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part.safetensors", "b": "part.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"part.safetensors is missing"):
        read_state(index)
    save_file({"a": torch.ones(1)}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="names b, which its files lack"):
        read_state(index)
    index.write_text(json.dumps({"weight_map": {"a": "../part.safetensors"}}))
    with pytest.raises(ValueError, match="is not beside it"):
        read_state(index)
