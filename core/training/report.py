"""What a training run says about itself: a line of progress, `curves.png`, `summary.json`, `report.html`."""

import json
import logging
import math
import os
import struct
import time
import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from fewstep.core.training.distiller import Distiller
from fewstep.core.training.health import Alarm, read_alarms
from fewstep.core.training.page import PICTURES, write_page
from fewstep.core.training.probes import untouched
from fewstep.core.training.randomness import step_generator
from fewstep.core.training.run_folder import read_metrics

CURVES = "curves.png"
SUMMARY = "summary.json"
FINAL_ROWS = 100  # a metric's final value is its mean over this many last logged rows
PANEL_INCHES = (4.0, 2.6)
COLUMNS = 3
SHOWN = ("loss/", "val/")  # what a line of progress shows; the rest is in the metrics file

log = logging.getLogger(__name__)


class Progress(Callback):
    """Log one line with step, speed, time left, losses and validation, for terminals and log files alike.

    Args:
        every_seconds: wall-clock time between lines.
    """

    def __init__(self, *, every_seconds: float = 20.0) -> None:
        self.every_seconds = every_seconds
        self._line_at = 0.0
        self._start_at = 0.0
        self._start_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_at = self._line_at = time.monotonic()
        self._start_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and time.monotonic() - self._line_at >= self.every_seconds:
            self._log_line(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._log_line(trainer)

    def _log_line(self, trainer: Trainer) -> None:
        now = self._line_at = time.monotonic()
        done = trainer.global_step - self._start_step
        rate = done / max(now - self._start_at, 1e-9)
        total = expected_steps(trainer)
        left = f" of {total}, {duration((total - trainer.global_step) / rate)} left" if total and done else ""
        metrics = " ".join(
            f"{name}={float(value):.4g}"
            for name, value in sorted(trainer.callback_metrics.items())
            if "/" in name
        )
        log.info("step %d%s, %.2f steps/s  %s", trainer.global_step, left, rate, metrics)


class Report(Callback):
    """Draw every metric against the step and summarise the run, from time to time and at its end.

    Where the roles of a distillation give pictures of their averaged student, these are kept too. All of it
    together is `report.html`.

    Args:
        every_minutes: wall-clock time between drawings.
    """

    def __init__(self, *, every_minutes: float = 5.0) -> None:
        self.every_minutes = every_minutes
        self._written_at = time.monotonic()
        self._started_at = time.monotonic()
        self._earlier_seconds = 0.0
        self._batch: object = None

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._earlier_seconds = state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started_at = self._written_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        due = time.monotonic() - self._written_at >= 60 * self.every_minutes
        if trainer.strategy.broadcast(due):
            self._written_at = time.monotonic()
            self._write(trainer, pl_module, batch)
        self._batch = batch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module, self._batch)

    def _seconds(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._started_at

    def _write(self, trainer: Trainer, pl_module: LightningModule, batch: object) -> None:
        pictures = pictures_of(pl_module, batch)
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        for name, picture in pictures.items():
            save_picture(picture, folder / PICTURES / f"{name}-{trainer.global_step:07d}.png")
        series = read_series(folder)
        summary = {
            "steps": trainer.global_step,
            "complete": trainer.global_step == expected_steps(trainer),
            "seconds": round(self._seconds(), 1),
            "device": str(pl_module.device),
            "precision": str(trainer.precision),
            "trainable_parameters": sum(
                p.numel() for optimizer in trainer.optimizers for p in _parameters(optimizer)
            ),
            "versions": {name: version(name) for name in ("torch", "lightning")},
            "metrics": {name: final_value(values) for name, (_, values) in series.items()},
        }
        partial = folder / (SUMMARY + ".partial")
        partial.write_text(json.dumps(summary, indent=2) + "\n")
        os.replace(partial, folder / SUMMARY)
        if find_spec("matplotlib") is None:
            log.info("no %s: pip install 'fewstep[train]' to have the metrics drawn", CURVES)
        elif series:
            draw_curves(series, folder / CURVES, alarms=read_alarms(folder))
        write_page(folder)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def read_series(folder: Path) -> dict[str, tuple[list[int | float], list[float]]]:
    """Each metric of a run as (steps, finite values), in alphabetical order."""
    series: dict[str, tuple[list[int | float], list[float]]] = {}
    for row in read_metrics(folder):
        for name, value in row.items():
            if name != "step" and math.isfinite(value):
                steps, values = series.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    return dict(sorted(series.items()))


def final_value(values: list[float]) -> float:
    """Mean of the last logged values of a metric."""
    last = values[-FINAL_ROWS:]
    return sum(last) / len(last)


def pictures_of(module: LightningModule, batch: object) -> dict[str, Tensor]:
    """What the roles show of the averaged student, always of the same noise; leaves no trace in the run."""
    if not isinstance(module, Distiller) or batch is None:
        return {}
    generator = step_generator(module.seed, "pictures", device=module.device)
    with untouched(module), module.ema.swapped(module.roles.student), torch.no_grad():
        return module.roles.pictures(batch, generator=generator)


def save_picture(picture: Float[Tensor, " 3 height width"], path: Path) -> None:
    """A picture with values in [0, 1] as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (picture.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu()
    height, width, _ = pixels.shape
    # each row after a zero: no filter
    rows = torch.cat([pixels.new_zeros(height, 1), pixels.reshape(height, 3 * width)], dim=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # eight bits, colour, not interlaced
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.numpy().tobytes(), 9)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_png_part(*part) for part in parts))


def _png_part(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def draw_curves(
    series: Mapping[str, tuple[Sequence[int | float], Sequence[float]]],
    path: Path,
    *,
    alarms: Sequence[Alarm] = (),
) -> None:
    """One small panel per metric: raw values in grey, their running mean, and red where an alarm was on."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(series))
    rows = math.ceil(len(series) / columns)
    figure = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, (steps, values)) in enumerate(series.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.plot(steps, values, color="0.8", linewidth=0.8)
        axes.plot(steps, running_mean(values), color="C0", linewidth=1.4)
        for alarm in alarms if name.startswith("health/") else ():
            axes.axvspan(
                alarm["since"], alarm["until"] or steps[-1], color="tab:red", alpha=0.08, linewidth=0
            )
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=110)
    os.replace(partial, path)


def running_mean(values: Sequence[float]) -> list[float]:
    """Causal mean over the last twentieth of the run, at least one value."""
    width = max(1, len(values) // 20)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - width)]) / min(i + 1, width) for i in range(len(values))]


def expected_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole run, or None when only time or the user ends it."""
    total = trainer.estimated_stepping_batches
    return int(total) if math.isfinite(total) and total > 0 else None


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as `1:02:03`."""
    minutes, second = divmod(round(max(seconds, 0.0)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}"
