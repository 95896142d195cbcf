"""`report.html`: a run's folder as one page that stands by itself."""

import base64
import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fewstep.core.training.health import Alarm, read_alarms

PAGE = "report.html"
PICTURES = "pictures"
SHOWN_PICTURES = 6  # of each kind, evenly over the run, the last among them

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
img { max-width: 100%; } figure { display: inline-block; margin: 0 1rem 1rem 0; }
figcaption { color: #666; font-size: 0.85rem } td, th { text-align: left; padding: 0.1rem 1.2rem 0.1rem 0 }
.well { color: #17633a } .ill { color: #a11a1a } pre { overflow-x: auto; background: #f5f5f5; padding: 1rem }
"""


def write_page(folder: Path) -> Path:
    """Write the page from what the folder holds: summary, curves, alarms, pictures, configuration."""
    summary = json.loads((folder / "summary.json").read_text())
    parts = [
        f"<h1>{html.escape(folder.resolve().name)}</h1>",
        _about(summary),
        "<h2>Health</h2>",
        _health(read_alarms(folder), measured=any(name.startswith("health/") for name in summary["metrics"])),
        _curves(folder / "curves.png"),
        _samples(folder / PICTURES),
        "<h2>Last values</h2>",
        _table(summary["metrics"]),
        _configuration(folder / "config.yaml"),
    ]
    body = "\n".join(part for part in parts if part)
    partial = folder / (PAGE + ".partial")
    partial.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(folder.name)}'
        f"</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
    os.replace(partial, folder / PAGE)
    return folder / PAGE


def picture_steps(folder: Path, name: str) -> list[tuple[int, Path]]:
    """The pictures of one kind with their steps, in order."""
    paths = folder.glob(f"{name}-*.png")
    return sorted((int(path.stem.rpartition("-")[2]), path) for path in paths)


def evenly(items: Sequence[tuple[int, Path]], count: int) -> list[tuple[int, Path]]:
    """At most ``count`` of the items, evenly spread, first and last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(place * (len(items) - 1) / (count - 1))] for place in range(count)]


def _about(summary: Mapping[str, object]) -> str:
    state = "complete" if summary["complete"] else "not complete"
    return (
        f"<p>{summary['steps']} steps, {state}; {summary['seconds']} s on {summary['device']} in "
        f"{summary['precision']}; {summary['trainable_parameters']} trainable parameters.</p>"
    )


def _health(alarms: Sequence[Alarm], *, measured: bool) -> str:
    if not measured:
        return "<p>Not measured.</p>"
    if not alarms:
        return '<p class="well">No alarm was raised.</p>'
    rows = []
    for alarm in alarms:
        lasting = "still on" if alarm["until"] is None else f"over at step {alarm['until']}"
        kind = "ill" if alarm["until"] is None else "over"
        rows.append(
            f'<li class="{kind}"><b>{html.escape(alarm["name"])}</b>, from step {alarm["since"]}, {lasting}: '
            f"{html.escape(alarm['message'])}.</li>"
        )
    return f"<ul>{''.join(rows)}</ul>"


def _curves(path: Path) -> str:
    return f"<h2>Curves</h2>\n{_image(path, 'every metric against the step')}" if path.is_file() else ""


def _samples(folder: Path) -> str:
    kinds = sorted({path.stem.rpartition("-")[0] for path in folder.glob("*-*.png")})
    rows = []
    for kind in kinds:
        shown = evenly(picture_steps(folder, kind), SHOWN_PICTURES)
        rows.append("".join(_figure(path, f"{kind}, step {step}") for step, path in shown))
    return "<h2>Samples</h2>\n" + "\n<br>\n".join(rows) if rows else ""


def _figure(path: Path, caption: str) -> str:
    return f"<figure>{_image(path, caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _image(path: Path, alternative: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alternative)}">'


def _table(metrics: Mapping[str, float]) -> str:
    rows = (f"<tr><td>{html.escape(name)}</td><td>{value:.4g}</td></tr>" for name, value in metrics.items())
    return f"<table>{''.join(rows)}</table>"


def _configuration(path: Path) -> str:
    if not path.is_file():
        return ""
    return f"<details><summary>Configuration</summary><pre>{html.escape(path.read_text())}</pre></details>"
