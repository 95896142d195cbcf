"""Many scores as one table: a row per thing that was scored, a column per score."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fewstep.apps.records import PIPE_WIDTH, Record, Setting

DIGITS = 3


def print_scores(
    records: Sequence[Record], *, rows: Sequence[str], sections: Sequence[str], title: str
) -> None:
    """Records with equal settings `rows` share a row; a line is drawn where settings `sections` change."""
    names = list(dict.fromkeys(record.name for record in records))
    units = {record.name: record.unit for record in records}
    scores: dict[tuple[Setting, ...], dict[str, float]] = {}
    for record in records:
        scores.setdefault(tuple(record.settings.get(key) for key in rows), {})[record.name] = record.value
    table = Table(title=title, title_justify="left")
    for key in rows:
        table.add_column(key)
    for name in names:
        heading = name.replace("_", "_\n")  # narrow enough for a dozen scores beside each other
        table.add_column(f"{heading}\n[dim]{units[name]}[/dim]", justify="right")
    positions, last = [list(rows).index(key) for key in sections], None
    for key, values in scores.items():
        section = [key[position] for position in positions]
        if last is not None and section != last:
            table.add_section()
        last = section
        shown = ["-" if setting is None else str(setting) for setting in key]
        table.add_row(*shown, *(f"{values[name]:.{DIGITS}g}" if name in values else "" for name in names))
    console = Console()
    (console if console.is_terminal else Console(width=PIPE_WIDTH)).print(table)
