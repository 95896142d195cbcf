"""What a measurement prints: flat records as a table for people and as JSON for programs."""

import argparse
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

Setting = str | int | float | bool | None
RESERVED = ("name", "value", "unit")
SIGNIFICANT_DIGITS = 4
PIPE_WIDTH = 400  # characters; in a file or a pipe columns stay whole instead of folding to 80


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured number and the settings that define it."""

    name: str
    value: int | float
    unit: str
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        clash = sorted(set(RESERVED) & set(self.settings))
        if clash:
            raise ValueError(f"Record: settings of {self.name} redefine {', '.join(clash)}; rename them")

    def flat(self) -> dict[str, Setting]:
        """The record as one JSON object; a value that is not finite becomes null."""
        value = self.value if math.isfinite(self.value) else None
        return {"name": self.name, "value": value, "unit": self.unit, **self.settings}


def machine_settings(device: str = "cpu") -> dict[str, Setting]:
    """The settings every measurement shares: where it ran and how busy that machine was."""
    import torch

    named = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {
        "device": device,
        "device_name": named,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": round(os.getloadavg()[0], 2),
    }


def print_table(records: Sequence[Record], *, title: str = "") -> None:
    """One row per record; settings that all records share go into the caption."""
    shared = _shared_settings(records)
    columns = list(dict.fromkeys(key for record in records for key in record.settings if key not in shared))
    caption = ", ".join(f"{key} {_shown(value)}" for key, value in shared.items())
    table = Table(title=title or None, caption=caption or None, title_justify="left", caption_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit")
    for column in columns:
        table.add_column(column)
    for record in records:
        settings = [_shown(record.settings[key]) if key in record.settings else "" for key in columns]
        table.add_row(record.name, _shown(record.value), record.unit, *settings)
    console = Console()
    (console if console.is_terminal else Console(width=PIPE_WIDTH)).print(table)


def write_json(path: Path, records: Sequence[Record]) -> None:
    """Write the flat records as a JSON list; an interrupted write leaves no partial file."""
    text = json.dumps([record.flat() for record in records], indent=1, allow_nan=False) + "\n"
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def finish(records: Sequence[Record], args: argparse.Namespace, *, title: str = "") -> int:
    """Print the table, write ``args.json`` if it was asked for, and return the exit code."""
    print_table(records, title=title)
    if args.json is not None:
        write_json(args.json, records)
    return 0


def _shared_settings(records: Sequence[Record]) -> dict[str, Setting]:
    if not records:
        return {}
    first = records[0].settings
    return {
        key: value
        for key, value in first.items()
        if all(key in record.settings and record.settings[key] == value for record in records)
    }


def _shown(value: Setting) -> str:
    if isinstance(value, float):
        return f"{value:.{SIGNIFICANT_DIGITS}g}" if abs(value) < 10**SIGNIFICANT_DIGITS else f"{value:,.0f}"
    return "-" if value is None else str(value)
