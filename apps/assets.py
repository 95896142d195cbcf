"""What a folder holds that can be shown, and what our commands wrote about it."""

import contextlib
import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

Kind = Literal["video", "picture", "mesh", "protein"]
KINDS: dict[str, Kind] = {
    ".mp4": "video",
    ".png": "picture",
    ".jpg": "picture",
    ".glb": "mesh",
    ".pdb": "protein",
    ".ent": "protein",
    ".cif": "protein",
    ".bcif": "protein",
}
MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".glb": "model/gltf-binary",
    ".pdb": "chemical/x-pdb",
    ".ent": "chemical/x-pdb",
    ".cif": "chemical/x-cif",
    ".bcif": "application/octet-stream",
}
MMCIF = (".cif", ".bcif")
MOST_ASSETS, MOST_RECORDS = 2000, 200
MOST_TABLE_BYTES = 16 * 2**20
NAMING = ("file", "path", "name")  # columns of a table by which a row says whose it is
LONG = ("sequence", "structure", "cues", "takes", "weights_sha256")
SHORTEST_CHAIN = 4
EXACT = 2**53

Scalar = str | int | float | bool
Chain = Float[np.ndarray, " _ 3"]  # any length: lists hold chains of several


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A file that is shown, under the name it has below its folder."""

    path: Path
    name: str
    kind: Kind
    metrics: Mapping[str, Scalar]

    @property
    def there(self) -> bool:
        return self.path.is_file() and not self.path.is_symlink()


def find_assets(folder: Path) -> list[Asset]:
    """Everything below the folder with a known suffix, by name; neither hidden files nor links.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    root = folder.resolve()
    paths = [path for path in _files(root) if path.suffix.lower() in KINDS and ".part" not in path.suffixes]
    if not paths:
        raise FileNotFoundError(f"{folder} holds nothing to show; known are {', '.join(KINDS)}")
    tables = _tables(root)
    return [
        Asset(
            path=path,
            name=shown(path.relative_to(root).as_posix()),
            kind=KINDS[path.suffix.lower()],
            metrics=_metrics(path, tables),
        )
        for path in paths[:MOST_ASSETS]
    ]


def folder_records(folder: Path) -> list[dict[str, Scalar]]:
    """Measurements of the whole folder, as `--json` of the eval and bench commands writes them."""
    records = []
    for path in sorted(folder.glob("*.json")):
        content = _read_json(path)
        if isinstance(content, list):
            named = [row for row in content if isinstance(row, dict) and {"name", "value"} <= row.keys()]
            records += [{"report": shown(path.stem), **_scalars(row)} for row in named]
    return records[:MOST_RECORDS]


def shown(text: str) -> str:
    """The text as UTF-8 can hold it: file names may be any bytes, and JSON may escape half a character."""
    return text.encode("utf-8", "replace").decode()


def for_browsers(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row, with whole numbers that JavaScript would round as text: of a seed every digit counts."""
    large = {name: str(value) for name, value in row.items() if isinstance(value, int) and abs(value) > EXACT}
    return {**row, **large}


def protein_text(path: Path) -> str:
    """A protein in PDB format, whatever its file is.

    Raises:
        ImportError: mmCIF without biotite.
        ValueError: an mmCIF file that cannot be read, or does not fit.
    """
    if path.suffix.lower() not in MMCIF:
        return path.read_text(encoding="ascii", errors="replace")
    from fewstep.modalities.protein.data.structure_files import pdb_text

    return pdb_text(path)


def read_chains(path: Path) -> dict[str, Chain]:
    """CA atoms of a protein's first model by chain, in angstrom; very short chains are left out.

    Raises what ``protein_text`` raises.
    """
    chains: dict[str, list[list[float]]] = {}
    for line in protein_text(path).splitlines():
        if line.startswith("ENDMDL"):
            break
        if line.startswith("ATOM  ") and line[12:16].strip() == "CA" and line[16] in " A":
            try:
                place = [float(line[start : start + 8]) for start in (30, 38, 46)]
            except ValueError:
                continue
            chains.setdefault(line[21], []).append(place)
    arrays = {name: np.asarray(chain, np.float32) for name, chain in chains.items()}
    return {
        name: array
        for name, array in arrays.items()
        if len(array) >= SHORTEST_CHAIN and np.isfinite(array).all()
    }


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        # A linked folder on the way would lead out of the one that was given.
        if not hidden and path.is_file() and path.resolve() == path:
            yield path


def _tables(root: Path) -> dict[str, dict[str, Scalar]]:
    """Rows of CSV tables, under the path of the file that they name."""
    rows: dict[str, dict[str, Scalar]] = {}
    for table in _files(root):
        if table.suffix.lower() != ".csv" or table.stat().st_size > MOST_TABLE_BYTES:
            continue
        # Any table may lie here; what cannot be read of it is not ours.
        with (
            contextlib.suppress(OSError, csv.Error),
            table.open(newline="", encoding="utf-8", errors="replace") as file,
        ):
            for row in csv.DictReader(file):
                column = next((name for name in NAMING if row.get(name)), None)
                if column is not None:
                    named = (table.parent / str(row[column])).as_posix()
                    rows[named] = {key: _number(v) for key, v in row.items() if key != column and v and key}
    return {name: _scalars(row) for name, row in rows.items()}


def _metrics(path: Path, tables: Mapping[str, Mapping[str, Scalar]]) -> dict[str, Scalar]:
    """From a row of a table, and from a `.json` of the same name."""
    found = dict(tables.get(path.as_posix(), tables.get(path.with_suffix("").as_posix(), {})))
    beside = _read_json(path.with_suffix(".json"))
    if isinstance(beside, dict):
        found |= _scalars(beside)
        cues = beside.get("cues")
        if isinstance(cues, list) and cues and isinstance(cues[0], dict) and "prompt" in cues[0]:
            found["prompt"] = shown(
                " → ".join(str(cue.get("prompt")) for cue in cues[:4] if isinstance(cue, dict))
            )
    return found


def _read_json(path: Path) -> Any:
    """What the file says; None where there is none, or nothing that makes sense."""
    if not path.is_file() or path.is_symlink() or path.stat().st_size > MOST_TABLE_BYTES:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: None)
    except (OSError, ValueError, RecursionError):
        return None


def _scalars(row: Mapping[str, Any]) -> dict[str, Scalar]:
    return {
        shown(key): shown(value) if isinstance(value, str) else value
        for key, value in row.items()
        if isinstance(value, str | int | float | bool) and value != "" and key not in LONG
        if not isinstance(value, float) or math.isfinite(value)
    }


def _number(text: Any) -> Scalar:
    """A cell of a CSV table as what it was before it was written."""
    words = {"True": True, "False": False}
    if text in words:
        return words[text]
    try:
        value = float(text)
    except (TypeError, ValueError):
        return str(text)
    if not np.isfinite(value):
        return str(text)
    return int(value) if value.is_integer() and "." not in str(text) and abs(value) < 2**53 else value
