"""Files that torch and Lightning write, read without running anything that stands in them.

A ``.ckpt`` is a zip archive: one pickle, and the bytes of each tensor beside it. The pickle names classes and
functions, and Python's own unpickler would import and call them. Here a name leads to a few harmless types,
to an inert stand-in if a checkpoint has good reason for it, or to an error. Tensors are read when they are
asked for, so the optimiser's half of a file is never touched.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STAND_INS = (
    "_codecs",
    "antlr4",
    "collections",
    "copy_reg",
    "copyreg",
    "enum",
    "hydra",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "loguru",
    "numpy",
    "omegaconf",
    "pathlib",
    "proteinfoundation",
    "pytorch_lightning",
    "torch",
    "torchmetrics",
    "typing",
)  # packages whose objects checkpoints hold beside tensors
HARMLESS = {
    kind.__name__: kind
    for kind in (bool, bytes, complex, dict, float, frozenset, int, list, object, set, slice, str, tuple)
} | {"long": int, "unicode": str}  # what Python 2, whose protocol torch writes, called two of them
BUILTINS = ("builtins", "__builtin__")  # the second is Python 2's
STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
DAMAGE = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)  # what Python says of archives and pickles that are not whole


class ForbiddenNameError(Exception):
    """A pickle names something that no checkpoint needs."""


class StandIn:
    """An object of a class that was not imported; it keeps the state that the pickle gives it, no more."""

    state: object = None

    def __new__(cls, *arguments: object, **named: object) -> "StandIn":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        """What pickles of mappings call."""

    def append(self, value: object) -> None:
        """What pickles of lists call."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's numbers are: in the record ``key``, from ``offset`` on, both counted in elements."""

    key: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Archive:
    """A file of torch, open.

    Args:
        path: of the file.
        content: the pickled object, with a `StoredTensor` for every tensor.
        prefix: of the names of its records.
    """

    path: Path
    content: Any
    prefix: str

    def tensors(self, stored: Mapping[str, object]) -> dict[str, Tensor]:
        """A mapping's tensors, read now.

        Raises:
            ValueError: something in it is not a tensor, or its bytes are missing.
        """
        others = [str(name) for name, value in stored.items() if not isinstance(value, StoredTensor)]
        if others or not stored:
            listed = f"it has {', '.join(others[:4])}" if others else "it is empty"
            raise ValueError(f"{self.path} must hold weights by name; {listed}")
        with zipfile.ZipFile(self.path) as archive:
            try:
                return {name: self._read(archive, value) for name, value in stored.items()}
            except (*DAMAGE, RuntimeError) as error:
                raise ValueError(f"{self.path} is damaged ({error}); copy it again") from error

    def _read(self, archive: zipfile.ZipFile, stored: Any) -> Tensor:
        numbers = bytearray(archive.read(f"{self.prefix}data/{stored.key}"))
        flat = (
            torch.frombuffer(numbers, dtype=stored.dtype) if numbers else torch.empty(0, dtype=stored.dtype)
        )
        return flat.as_strided(stored.size, stored.stride, stored.offset).clone()


def open_archive(path: Path) -> Archive:
    """The content of a file that ``torch.save`` wrote in the last years.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file, damaged, or names what no checkpoint needs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; download or copy it there")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no archive of torch; give a .ckpt as Lightning writes it, whole")
    try:
        with zipfile.ZipFile(path) as archive:
            (pickled,) = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
            prefix = pickled.removesuffix("data.pkl")
            order = f"{prefix}byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise ValueError("its numbers are big-endian")
            with archive.open(pickled) as file:
                return Archive(path, _Reader(file).load(), prefix)
    except ForbiddenNameError as error:
        raise ValueError(
            f"{path} names {error}, which no checkpoint needs. Nothing of it was run; do not trust this file"
        ) from error
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read ({error}); copy or download it again") from error


class _Reader(pickle.Unpickler):
    """An unpickler that imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _FUNCTIONS:
            return _FUNCTIONS[module, name]
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module in BUILTINS and name in HARMLESS:
            return HARMLESS[name]
        if module.partition(".")[0] in STAND_INS:
            return type(name, (StandIn,), {"__module__": module})
        raise ForbiddenNameError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[str, torch.dtype]:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"unknown record {kind!r}")
        return key, dtype


def _tensor(
    storage: tuple[str, torch.dtype], offset: int, size: Any, stride: Any, *_: object
) -> StoredTensor:
    key, dtype = storage
    return StoredTensor(key, dtype, offset, tuple(size), tuple(stride))


def _parameter(data: StoredTensor, *_: object) -> StoredTensor:
    return data


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


def plain(value: object) -> Any:
    """What a stand-in of OmegaConf's containers and values holds, as dicts, lists and values."""
    if isinstance(value, StandIn) and isinstance(value.state, Mapping):
        if "_content" in value.state:
            return plain(value.state["_content"])
        if "_val" in value.state:
            return plain(value.state["_val"])
    if isinstance(value, Mapping):
        return {str(plain(name)): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value
