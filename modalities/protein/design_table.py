"""What is said of each design, a row each, and tables of it."""

import csv
import importlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from fewstep.modalities.protein.chains import Chain, padded
from fewstep.modalities.protein.geometry import geometry
from fewstep.modalities.protein.secondary_structure import dssp, p_sea

Value = str | int | float | bool | None
Row = dict[str, Value]

DIGITS = 4
INSTALL_PARQUET = "a Parquet table needs the package pyarrow: pip install 'fewstep[scale]'"


def measured(chains: Sequence[Chain]) -> list[Row]:
    """Geometry and secondary structure of CA chains, in the names of ``Geometry``; a few milliseconds each.

    ``helix`` and ``strand`` are shares by P-SEA, ``structure`` its letters.
    """
    tensor = padded(chains)
    shape, structure = geometry(tensor), p_sea(tensor)
    columns = {name: value.tolist() for name, value in vars(shape).items()}
    columns |= {"helix": structure.helix_share().tolist(), "strand": structure.strand_share().tolist()}
    columns["structure"] = structure.texts()
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [{name: rounded(value) for name, value in row.items()} for row in rows]


def of_backbones(backbones: Sequence[Float[np.ndarray, " _ 4 3"]]) -> list[Row]:
    """``dssp_helix`` and ``dssp_strand``, shares by hydrogen bonds of completed backbones.

    Raises:
        ImportError: without pydssp.
    """
    return [
        {
            "dssp_helix": rounded(text.count("H") / len(text)),
            "dssp_strand": rounded(text.count("E") / len(text)),
        }
        for text in dssp(backbones)
    ]


def rounded(value: Value) -> Value:
    """Fewer digits, and None for what is not a number, which neither CSV nor JSON has."""
    if not isinstance(value, float):
        return value
    return round(value, DIGITS) if np.isfinite(value) else None


def csv_table(rows: Sequence[Mapping[str, Value]]) -> bytes:
    """With a line of names; a column stands where any row has it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet_table(rows: Sequence[Mapping[str, Value]]) -> bytes:
    """The same columns, with their types.

    Raises:
        ImportError: without pyarrow.
    """
    try:
        pyarrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError(INSTALL_PARQUET) from error
    columns = {name: [row.get(name) for row in rows] for name in _columns(rows)}
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


def _columns(rows: Sequence[Mapping[str, Value]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))
