"""Captioned pictures on disk: loose image files with sidecars, and tar shards of the same, read and written.

A shard is a tar file in which `NAME.png` is followed by `NAME.json`, as WebDataset readers expect it.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SHARD_SUFFIX = ".tar"

Picture = UInt8[np.ndarray, " height width 3"]
Record = dict[str, Any]  # what the JSON beside a picture holds


@dataclass(frozen=True, kw_only=True)
class Label:
    """What is known of a picture: phrasings of its caption, and for rendered ones the attributes."""

    name: str
    captions: tuple[str, ...]
    heldout_captions: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """All pictures of a folder in one size, 8-bit sRGB, with their labels in the same order."""

    pixels: UInt8[np.ndarray, " picture size size 3"]
    labels: tuple[Label, ...]


def load_pictures(folder: Path | str, *, size: int = 64, cache: Path | str | None = None) -> Pictures:
    """Reads every picture of `folder` with its captions, in the order of the names.

    Beside NAME.png (or .jpg, .jpeg, .webp, .bmp) lies NAME.txt with one caption, or NAME.json,
    `{"captions": ["...", ...]}`. A file NAME.tar holds any number of such pairs.

    Args:
        size: edge of the square pictures in pixels; others are cut to the square in their middle and scaled.
        cache: folder for decoded pixels and labels. With it the folder is decoded once; later calls map the
            pixels from disk, and pictures need no memory of their own.

    Raises:
        ValueError: a file cannot be read or has no captions; the message names it.
    """
    folder = Path(folder)
    if size < 1:
        raise ValueError(f"size={size} is not positive; use for example 64")
    files = _files(folder)
    if cache is None:
        return _stacked([(_fitted(data, size, name), label) for name, data, label in _pictures(files)])
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    sidecars = [(_sidecar(file).name, _sidecar(file).stat().st_mtime_ns) for file in files if _is_image(file)]
    key = hashlib.sha256(json.dumps([states, sidecars, size]).encode()).hexdigest()[:16]
    raw, contents = Path(cache) / f"pixels-{key}.raw", Path(cache) / f"pixels-{key}.json"
    if not contents.exists():
        _decode(files, size, raw, contents)
    labels = tuple(
        Label(
            name=entry["name"],
            captions=tuple(entry["captions"]),
            heldout_captions=tuple(entry["heldout_captions"]),
            attributes=entry["attributes"],
        )
        for entry in json.loads(contents.read_text(encoding="utf-8"))
    )
    # Copy on write: torch refuses to wrap read-only memory without a warning.
    return Pictures(pixels=np.memmap(raw, np.uint8, "c", shape=(len(labels), size, size, 3)), labels=labels)


def write_shard(path: Path, entries: Iterable[tuple[str, Picture, Record]]) -> None:
    """Writes (name, picture, record) triples as one shard, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as shard:
        for name, picture, record in entries:
            coded = io.BytesIO()
            Image.fromarray(picture).save(coded, "PNG")
            text = json.dumps(record, separators=(",", ":")).encode()
            for suffix, data in (("png", coded.getvalue()), ("json", text)):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    os.replace(part, path)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; make it and put pictures with captions there")
    files = sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and (_is_image(path) or path.suffix.lower() == SHARD_SUFFIX)
    )
    if not files:
        suffixes = ", ".join((*IMAGE_SUFFIXES, SHARD_SUFFIX))
        raise ValueError(f"{folder} holds no picture; put {suffixes} files there")
    return files


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _sidecar(image: Path) -> Path:
    structured, plain = image.with_suffix(".json"), image.with_suffix(".txt")
    if structured.exists():
        return structured
    if plain.exists():
        return plain
    raise ValueError(f"{image} has no captions; put {plain.name} or {structured.name} beside it")


def _pictures(files: list[Path]) -> Iterator[tuple[str, bytes, Label]]:
    """(where it is, coded picture, label) of every picture."""
    for file in files:
        if _is_image(file):
            sidecar = _sidecar(file)
            yield str(file), file.read_bytes(), _read_label(file.stem, str(sidecar), sidecar.read_bytes())
        else:
            yield from _shard_pictures(file)


def _shard_pictures(path: Path) -> Iterator[tuple[str, bytes, Label]]:
    try:
        with tarfile.open(path) as shard:
            members = {
                member.name: data.read()
                for member in shard
                if member.isfile() and (data := shard.extractfile(member)) is not None
            }
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable tar file; write it anew or remove it") from error
    names = [name for name in members if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    if not names:
        raise ValueError(f"{path} holds no picture; put {', '.join(IMAGE_SUFFIXES)} files into it")
    for name in names:
        stem = name.removesuffix(Path(name).suffix)
        sidecar = next((f"{stem}{end}" for end in (".json", ".txt") if f"{stem}{end}" in members), None)
        if sidecar is None:
            raise ValueError(f"{path}: {name} has no captions; put {stem}.json beside it")
        yield f"{path}: {name}", members[name], _read_label(stem, f"{path}: {sidecar}", members[sidecar])


def _read_label(name: str, where: str, data: bytes) -> Label:
    try:
        text = data.decode("utf-8")
        record = json.loads(text) if where.endswith(".json") else {"captions": [" ".join(text.split())]}
    except ValueError as error:
        raise ValueError(f"{where} cannot be read ({error}); write it anew in UTF-8") from error
    record = record if isinstance(record, dict) else {}
    captions, heldout = record.get("captions"), record.get("heldout_captions", [])
    for texts in (captions, heldout):
        if not isinstance(texts, list) or not all(isinstance(one, str) and one.strip() for one in texts):
            captions = None
    if not captions:
        raise ValueError(f'{where} holds no caption; use {{"captions": ["...", ...]}}, or one line in a .txt')
    attributes = record.get("attributes", {})
    attributes = attributes if isinstance(attributes, dict) else {}  # another program's own
    return Label(
        name=name,
        captions=tuple(captions),
        heldout_captions=tuple(heldout),
        attributes={str(key): str(value) for key, value in attributes.items()},
    )


def _fitted(data: bytes, size: int, where: str) -> UInt8[np.ndarray, " size size 3"]:
    """The decoded picture, its middle square scaled to `size`; transparency becomes white."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                clear = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
            picture = image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} cannot be decoded; save it anew or remove it") from error
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    picture = picture.crop((left, top, left + edge, top + edge))
    if edge != size:
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)  # antialiased when it shrinks
    return np.array(picture)


def _stacked(pictures: list[tuple[UInt8[np.ndarray, " size size 3"], Label]]) -> Pictures:
    return Pictures(
        pixels=np.stack([pixels for pixels, _ in pictures]), labels=tuple(label for _, label in pictures)
    )


def _decode(files: list[Path], size: int, raw: Path, contents: Path) -> None:
    """Writes pixels and labels; the labels are renamed into place last and mark both complete."""
    raw.parent.mkdir(parents=True, exist_ok=True)
    part = raw.with_suffix(f".{os.getpid()}.part")
    labels = []
    try:
        with part.open("wb") as file:
            for where, data, label in _pictures(files):
                _fitted(data, size, where).tofile(file)
                labels.append(vars(label))
        os.replace(part, raw)
        part.write_text(json.dumps(labels), encoding="utf-8")
        os.replace(part, contents)
    finally:
        part.unlink(missing_ok=True)
