"""Files named on the command line: what is wrong with them is said before the work and not after it."""

import argparse
import os
from pathlib import Path


def writable(text: str) -> Path:
    """An argument's file; one that cannot be written is refused before hours of measuring, not after."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path} must be a file in a folder that exists")
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path.parent} is a folder that cannot be written to")
    return path


def check_output(path: Path, *suffixes: str, option: str = "--output") -> None:
    """
    Raises:
        ValueError, OSError: the file has none of the endings, is a folder, or cannot be written to its own.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{option} must end in {' or '.join(suffixes)}, got {path.name!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{option}: no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"{option}: {path} is a folder; name a file")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{option}: nothing can be written to {path.parent}")


def check_folder(path: Path, *, option: str) -> None:
    """
    Raises:
        NotADirectoryError: the folder, which need not exist yet, cannot be one.
    """
    files = [place for place in (path, *path.parents) if place.exists() and not place.is_dir()]
    if files:
        raise NotADirectoryError(f"{option}: {files[0]} is a file; name a folder")


def read_text(path: Path, option: str) -> str:
    """What the file that `option` names holds, in UTF-8, also as Windows' editors begin it.

    Raises:
        ValueError, OSError: it cannot be read; the message names option and file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{option}: no file {path}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{option}: {path} is no text in UTF-8 ({error.reason}); save it as such") from error
