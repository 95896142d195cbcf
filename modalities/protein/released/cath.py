"""CATH's codes as rows of a released network's tables, by NVIDIA's ``cath_label_mapping.pt``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fewstep.modalities.protein.networks.embedding import LEVELS
from fewstep.modalities.protein.released.archive import open_archive

FILE = "cath_label_mapping.pt"


@dataclass(frozen=True)
class CathLabels:
    """Which row each code has: ``1`` of a class, ``1.10`` of an architecture, ``1.10.8`` of a topology.

    Args:
        path: of the file.
        rows: by level (`LEVELS`) and code.
    """

    path: Path
    rows: Mapping[str, Mapping[str, int]]

    @classmethod
    def read(cls, path: Path) -> "CathLabels":
        """The file that comes with Proteina's weights; nothing in it is run.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is another file.
        """
        content = open_archive(path).content
        found = {level: content.get(level) for level in LEVELS} if isinstance(content, Mapping) else {}
        rows: dict[str, Mapping[str, int]] = {
            level: told for level, told in found.items() if isinstance(told, Mapping)
        }
        if len(rows) < len(LEVELS):
            raise ValueError(f"{path} has no labels by {', '.join(LEVELS)}; give Proteina's {FILE}")
        return cls(path, rows)

    def of(self, code: str, fold_classes: tuple[int, int, int]) -> tuple[int, int, int]:
        """Rows of a code of one to three numbers; levels that it does not tell are unknown.

        Raises:
            ValueError: for a code that is not in the file, or a network of other tables.
        """
        sizes = tuple(len(self.rows[level]) for level in LEVELS)
        if sizes != fold_classes:
            raise ValueError(
                f"{self.path} has {sizes} labels, the network {fold_classes}; it is of another model"
            )
        numbers = code.split(".")
        rows = list(fold_classes)
        for place, level in enumerate(LEVELS[: len(numbers)]):
            row = self.rows[level].get(".".join(numbers[: place + 1]))
            if row is None or len(numbers) > len(LEVELS):
                raise ValueError(
                    f"fold={code!r} is not in {self.path}; give a class, an architecture or a topology of "
                    "CATH, such as 1, 1.10 or 1.10.8"
                )
            rows[place] = int(row)
        return rows[0], rows[1], rows[2]
