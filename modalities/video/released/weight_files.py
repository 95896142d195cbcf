"""Weights out of whatever file they were released in, by name; nothing in a file is ever executed."""

import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

POINTER = b"version https://git-lfs"  # how the file begins that Git LFS leaves in a large one's place
PICKLED = (".pt", ".pth", ".bin", ".ckpt")
INDEX = ".safetensors.index.json"
EMA, PLAIN = ("generator_ema",), ("generator", "model", "state_dict")  # containers, the first found counts
ADAPTERS = ("generator_lora",)  # LongLive's lora.pt holds the critic's as well
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")  # left by FSDP and compile
PREFIX = "model."

UNREADABLE = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    OSError,
    struct.error,
)
"""What torch says of files that are no archive, or half of one, or of which it makes a pickle that they are
not."""

State = dict[str, Tensor]


def read_weights(path: Path) -> Mapping[str, Any]:
    """What a file of weights holds, on the CPU: .safetensors, their .index.json, or a pickled .pt or .pth.

    Pickled files are read by torch's restricted unpickler, which knows tensors and plain containers.

    Raises:
        FileNotFoundError: the file, or one that an index names, is missing.
        ValueError: another kind of file, a damaged one, or one that holds code.
    """
    if path.name.endswith(INDEX):
        return _read_index(path)
    _check_present(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}); copy it again") from error
    if path.suffix not in PICKLED:
        raise ValueError(f"{path} is no file of weights; known are .safetensors and {', '.join(PICKLED)}")
    try:
        # mapped where torch can, so that only the tensors that are taken out are read
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of other protocols, which it reads or refuses
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, or is damaged, and is not unpickled; "
            "ask its authors for weights alone, best as .safetensors"
        ) from error
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is not a whole file of torch ({_first_line(error)}); copy it again"
        ) from error
    if not isinstance(found, Mapping):
        raise ValueError(
            f"{path} holds a {type(found).__name__}, expected a mapping of names to tensors; "
            "give a file of weights"
        )
    return found


def _check_present(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the file of weights in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; download or copy it there")
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ValueError(
                f"{path} is only the pointer that Git LFS leaves; run `git lfs pull` there, or download it"
            )


def read_state(path: Path) -> State:
    """A file of nothing but tensors by name."""
    return _tensors(read_weights(path), str(path))


def read_generator(path: Path, *, ema: bool = True) -> State:
    """The student's weights in a training checkpoint or a plain file, without containers and prefixes.

    Args:
        ema: take the averaged weights where a file has both.

    Raises:
        ValueError: weights of which two get the same name, or which are not tensors.
    """
    return unwrapped(read_weights(path), str(path), ema=ema)


def read_adapters(path: Path) -> State:
    """The student's adapters out of LongLive's training checkpoint, or out of a file of nothing else.

    Raises:
        ValueError: adapters of which two get the same name, or which are not tensors.
    """
    return _named(read_weights(path), str(path), ADAPTERS)


def unwrapped(found: Mapping[str, Any], where: str, *, ema: bool = True) -> State:
    """The first container of those that students are released in, or the mapping itself; names without the
    remains of wrappers and without the prefix of the training code.
    """
    return _named(found, where, (*EMA, *PLAIN) if ema else (*PLAIN, *EMA))


def _named(found: Mapping[str, Any], where: str, containers: Iterable[str]) -> State:
    for container in containers:
        if isinstance(found.get(container), Mapping):
            found, where = found[container], f"{where}: {container}"
            break
    state: State = {}
    for name, value in _tensors(found, where).items():
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        name = name.removeprefix(PREFIX)
        if name in state:
            raise ValueError(f"{where} holds {name} twice, under different prefixes; it is not one network")
        state[name] = value
    return state


def _tensors(found: Mapping[str, Any], where: str) -> State:
    others = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if others or not found:
        listed = f"it has {', '.join(others[:4])}" if others else "it is empty"
        raise ValueError(
            f"{where} must hold nothing but tensors by name; {listed}; give a file of weights alone, or one "
            f"that has them under {', '.join((*EMA, *PLAIN))}"
        )
    return dict(found)


def _read_index(path: Path) -> State:
    _check_present(path)
    try:
        places = dict(json.loads(path.read_text())["weight_map"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is no index of files of weights ({error}); copy it again") from error
    state: State = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file:
            raise ValueError(f"{path} names {file!r}, which is not beside it; an index names its neighbours")
        part = read_weights(path.with_name(file))
        state |= part
    missing = sorted(set(places) - set(state))
    if missing:
        raise ValueError(f"{path} names {', '.join(missing[:4])}, which its files lack; copy them again")
    return state


def _first_line(error: BaseException) -> str:
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
