"""A folder that designs are written to shard by shard: crash-safe, resumable, by any number of processes.

A shard is the batch of designs that are made at once. Its file is written beside its place and renamed;
then its record, with the file's digest, in the same way. A shard without a record, or whose file is not the
one that the record tells of, is made again; every other one is not. Which designs a shard holds and their
seeds follow from the run's settings alone, so the work can be divided over processes that never meet.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from fewstep.modalities.protein.chains import Chain
from fewstep.modalities.protein.design_table import Row
from fewstep.modalities.protein.files import write_whole

SETTINGS, SHARDS, MANIFEST = "run.json", "shards", "manifest.jsonl"


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """Designs that were made together, in order.

    Args:
        chains: CA atoms, angstrom, kept in float32.
        rows: of the table, one per chain.
    """

    chains: list[Chain]
    rows: list[Row]


@dataclass(frozen=True)
class ShardFolder:
    """The shards of one run.

    Args:
        folder: of the run.
        count: designs of the run.
        size: designs per shard; the last may have fewer.
        digest: of the settings, which every record repeats.
    """

    folder: Path
    count: int
    size: int
    digest: str

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any], *, count: int, size: int) -> "ShardFolder":
        """A new folder, or one of the same settings to go on with.

        Raises:
            ValueError: the folder holds other files, or a run of other settings, which are named.
        """
        wanted = json.loads(json.dumps({**settings, "count": count, "shard_size": size}))
        if not (folder / SETTINGS).exists():
            others = folder.is_dir() and any(p.name[0] != "." and p.name != SHARDS for p in folder.iterdir())
            # another worker may have made all of it a moment ago
            if others and not (folder / SETTINGS).exists():
                raise ValueError(
                    f"{folder} holds files but no {SETTINGS}; give a new folder, or empty this one"
                )
            (folder / SHARDS).mkdir(parents=True, exist_ok=True)
            _claim(folder / SETTINGS, json.dumps(wanted, indent=1) + "\n")
        found = _settings_of(folder)
        if found != wanted:
            other = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
            told = "; ".join(f"{name} was {found.get(name)!r}, now {wanted.get(name)!r}" for name in other)
            raise ValueError(
                f"{folder} holds designs of other settings ({told}); repeat those, or give a new folder"
            )
        (folder / SHARDS).mkdir(exist_ok=True)
        return cls(folder, count, size, _digest(wanted))

    @classmethod
    def existing(cls, folder: Path) -> "ShardFolder":
        """To read a run that is there, of whatever settings.

        Raises:
            FileNotFoundError: there is none.
        """
        if not (folder / SETTINGS).is_file():
            raise FileNotFoundError(f"{folder} holds no designs: it has no {SETTINGS}")
        found = _settings_of(folder)
        return cls(folder, found["count"], found["shard_size"], _digest(found))

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def designs(self, shard: int) -> range:
        """Numbers of the designs of a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.count))

    def is_finished(self, shard: int) -> bool:
        """Whether it is there as it was written, and of these settings."""
        record = self._record(shard)
        if record is None or record.get("settings") != self.digest or not self._data(shard).is_file():
            return False
        return record.get("sha256") == _sha256(self._data(shard).read_bytes())

    def unfinished(self, *, worker: int = 0, workers: int = 1) -> list[int]:
        """Shards that are still to be made by one of several workers; no two have one in common."""
        if not 0 <= worker < workers:
            raise ValueError(f"worker={worker} must be from 0 to {workers - 1}")
        return [shard for shard in range(worker, len(self), workers) if not self.is_finished(shard)]

    def write(self, shard: int, made: Shard) -> None:
        """Put a shard in place, and then its record."""
        wanted = self.designs(shard)
        if not len(made.chains) == len(made.rows) == len(wanted):
            raise ValueError(
                f"shard {shard} has {len(made.chains)} chains and {len(made.rows)} rows, not {len(wanted)}"
            )
        content = save(
            {
                "ca": np.concatenate(made.chains).astype(np.float32),
                "lengths": np.array([len(chain) for chain in made.chains], np.int32),
                "rows": np.frombuffer(json.dumps(made.rows).encode(), np.uint8),
            }
        )
        write_whole(self._data(shard), content)
        record = {
            "shard": shard,
            "file": f"{SHARDS}/{self._data(shard).name}",
            "designs": [wanted.start, wanted.stop],
            "sha256": _sha256(content),
            "settings": self.digest,
        }
        write_whole(self._record_path(shard), (json.dumps(record) + "\n").encode())

    def read(self, shard: int) -> Shard:
        """A finished shard."""
        arrays = load(self._data(shard).read_bytes())
        ends = np.cumsum(arrays["lengths"])[:-1]
        return Shard(
            chains=np.split(arrays["ca"].astype(np.float64), ends),
            rows=json.loads(arrays["rows"].tobytes().decode()),
        )

    def finished(self) -> Iterator[tuple[int, Shard]]:
        """Every finished shard, in order."""
        for shard in range(len(self)):
            if self.is_finished(shard):
                yield shard, self.read(shard)

    def write_manifest(self) -> bool:
        """One line per shard once all are finished; False, and nothing is written, before."""
        records = [self._record(shard) for shard in range(len(self))]
        if any(record is None for record in records) or self.unfinished():
            return False
        lines = "".join(json.dumps(record) + "\n" for record in records)
        write_whole(self.folder / MANIFEST, lines.encode())
        return True

    def _data(self, shard: int) -> Path:
        return self.folder / SHARDS / f"shard-{shard:06d}.safetensors"

    def _record_path(self, shard: int) -> Path:
        return self._data(shard).with_suffix(".json")

    def _record(self, shard: int) -> dict[str, Any] | None:
        return _read_object(self._record_path(shard))


def seeds_of(designs: Sequence[int], first: int) -> list[int]:
    """A design's seed is the run's plus the design's number."""
    return [first + design for design in designs]


def _settings_of(folder: Path) -> dict[str, Any]:
    found = _read_object(folder / SETTINGS)
    if found is None or not {"count", "shard_size"} <= set(found):
        raise ValueError(f"{folder / SETTINGS} is damaged; put it back as it was, or give a new folder")
    return found


def _read_object(path: Path) -> dict[str, Any] | None:
    """What a file of JSON says; None where it is not there, or not whole."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _claim(path: Path, text: str) -> None:
    """Write a file that several processes may begin at once: the first one's stays."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    finally:
        part.unlink()


def _digest(settings: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(settings, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
