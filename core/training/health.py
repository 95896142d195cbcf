"""Is the run healthy? Measurements from time to time, and alarms in plain words with what to do."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fewstep.core.training.distiller import Distiller
from fewstep.core.training.probes import Prober, coverage, real_values, sketch, spread

ALARMS = "health.json"
VALUES = 1 << 16  # values of each side that are kept for spread and tails
PARTS = 8  # batches that these come from
TAIL = 0.01  # share of the reference outside the limits of saturation
CRITIC_WINDOW = 5  # measurements that the critic's truth is summed over
ENOUGH = 32  # samples below which distances say nothing

log = logging.getLogger(__name__)

Values = Mapping[str, float]


class Alarm(TypedDict):
    """What `health.json` says of one alarm; ``until`` is None while it lasts."""

    name: str
    since: int
    until: int | None
    message: str


@dataclass(frozen=True)
class Rule:
    """An alarm: the values it reads, when it is true, and what it says then."""

    name: str
    reads: tuple[str, ...]
    broken: Callable[[Values], bool]
    message: Callable[[Values], str]


RULES = (
    Rule(
        "critic lags",
        ("critic_bias",),
        lambda v: v["critic_bias"] > 0.25,
        lambda v: (
            "the critic lags behind the student: on fresh samples its errors keep a bias of "
            f"{v['critic_bias']:.0%} of the reference's spread; raise critic_updates or critic_lr, or lower "
            "student_lr"
        ),
    ),
    Rule(
        "critic misleads",
        ("critic_truth", "gap"),
        lambda v: v["critic_truth"] < 0.3 and v["gap"] > 0.15,
        lambda v: (
            f"of the direction that the critic gives the student {max(0.0, v['critic_truth']):.0%} is true; "
            "raise critic_updates or critic_lr, or lower student_lr"
        ),
    ),
    Rule(
        "diverges",
        ("std_ratio",),
        lambda v: v["std_ratio"] > 1.5,
        lambda v: (
            f"the student's values spread {v['std_ratio']:.1f} times as wide as the reference: it diverges; "
            "lower student_lr and critic_lr, or lower the teacher's guidance_scale"
        ),
    ),
    Rule(
        "saturates",
        ("saturation",),
        lambda v: v["saturation"] > 0.1,
        lambda v: (
            f"{v['saturation']:.0%} of the student's values lie beyond the limits that {TAIL:.0%} of the "
            "reference's exceed: it saturates; lower the teacher's guidance_scale"
        ),
    ),
    Rule(
        "collapses",
        ("diversity",),
        lambda v: v["diversity"] < 0.6,
        lambda v: (
            f"the student's samples are {v['diversity']:.2f} times as far apart as the reference's: they "
            "collapse; raise critic_updates, lower guidance_scale, or add a loss on data"
        ),
    ),
    Rule(
        "misses modes",
        ("coverage",),
        lambda v: v["coverage"] < 0.4,
        lambda v: (
            f"the student reaches {v['coverage']:.0%} of the reference's neighbourhoods: it misses modes, or "
            "all of them; raise critic_updates, take more steps, or add a loss on data"
        ),
    ),
    Rule(
        "one time rules",
        ("time_share",),
        lambda v: v["time_share"] > 0.85,
        lambda v: (
            f"{v['time_share']:.0%} of the student's gradient comes from one part of the times; change the "
            "objective's times or weighting"
        ),
    ),
    Rule(
        "clipped",
        ("clipped",),
        lambda v: v["clipped"] > 0.5,
        lambda v: (
            f"the student's gradient was clipped in {v['clipped']:.0%} of its updates; lower student_lr, or "
            "raise grad_clip if the run is well otherwise"
        ),
    ),
)


class Watch:
    """Raises an alarm when its rule was broken `patience` times in a row, and ends it as patiently."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.runs: dict[str, int] = {}
        self.alarms: list[Alarm] = []

    def see(self, values: Values, step: int) -> list[Alarm]:
        """Judge one measurement; returns the alarms that it raised."""
        raised = []
        for rule in RULES:
            if not all(name in values for name in rule.reads):
                continue
            broken = rule.broken(values)
            # counts up while broken and down while not; the sign tells which
            run = self.runs.get(rule.name, 0)
            self.runs[rule.name] = run = max(run, 0) + 1 if broken else min(run, 0) - 1
            lasting = next((a for a in self.alarms if a["name"] == rule.name and a["until"] is None), None)
            if lasting is None and run >= self.patience:
                alarm = Alarm(name=rule.name, since=step, until=None, message=rule.message(values))
                self.alarms.append(alarm)
                raised.append(alarm)
            elif lasting is not None and run <= -self.patience:
                lasting["until"] = step
        return raised


class Health(Callback):
    """Measure a distillation every so many steps and say what is wrong with it.

    Logged as `health/...`: `critic_bias` (how far the critic's errors on fresh samples are from averaging
    out, 0 for an exact critic), `critic_truth` (the share of the direction critic minus teacher that is
    true, 1 for an exact critic, below 0 where it leads away), `gap` (that direction; both it and the bias
    over the spread of the reference), `critic_error`, `std_ratio` and `diversity` (the student's spread over
    the reference's, of values and of distances between samples), `saturation` (the share of values beyond
    limits that 1 % of the reference's exceed), `coverage` (about 0.97 for a perfect student),
    `gradient_time_1` and on (shares of the student's gradient by equally likely parts of the objective's
    times), `clipped`. The reference is real samples where the roles give them, else the teacher's own.
    What is measured on several processes is the first one's.

    Training modules that are no Distiller are left alone.

    Args:
        every_steps: optimizer steps between measurements; 0 for none. One costs about as much as
            ``time_bins + 1`` updates.
        samples: samples on each side that distances are measured between.
        time_bins: parts of the times for the gradient; 0 leaves it out.
        teacher_steps: of the reference, where it is the teacher's.
        patience: measurements in a row that raise or end an alarm.
        seed: of the measurements.
    """

    def __init__(
        self,
        *,
        every_steps: int = 200,
        samples: int = 256,
        time_bins: int = 4,
        teacher_steps: int = 16,
        patience: int = 3,
        seed: int = 0,
    ) -> None:
        if every_steps < 0 or patience < 1 or samples < ENOUGH:
            raise ValueError(
                f"every_steps={every_steps} must be at least 0, patience={patience} at least 1 and "
                f"samples={samples} at least {ENOUGH}"
            )
        self.every_steps = every_steps
        self.samples = samples
        self.prober = Prober(seed=seed, bins=time_bins, teacher_steps=teacher_steps)
        self.seed = seed
        self.watch = Watch(patience)
        self._kept: dict[str, Tensor] = {}
        self._critic: list[dict[str, float]] = []
        self._clips = [0, 0]
        self._seen_step = 0
        self._students = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "kept": self._kept,
            "critic": self._critic,
            "clips": self._clips,
            "runs": self.watch.runs,
            "alarms": self.watch.alarms,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._kept, self._critic, self._clips = (state_dict[name] for name in ("kept", "critic", "clips"))
        self.watch.runs, self.watch.alarms = state_dict["runs"], state_dict["alarms"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen_step = trainer.global_step
        if isinstance(pl_module, Distiller):
            self._students = int(pl_module.student_steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if not self.every_steps or step == self._seen_step or not isinstance(pl_module, Distiller):
            return
        self._seen_step = step
        self._count_clips(pl_module)
        if step % self.every_steps == 0:
            values = self.measure(pl_module, batch, step)
            for logger in trainer.loggers:
                logger.log_metrics({f"health/{name}": value for name, value in values.items()}, step)
            for alarm in self.watch.see(values, step):
                log.warning("step %d: %s", step, alarm["message"])
            if trainer.is_global_zero:
                write_alarms(Path(trainer.default_root_dir), self.watch.alarms)

    def measure(self, distiller: Distiller, batch: object, step: int) -> dict[str, float]:
        """Everything that can be measured of this distillation now."""
        values: dict[str, float] = {}
        sample = self.prober.sample(distiller, batch, step)
        if sample is not None:
            self._keep("fake", sample.x, real_values(sample.x, sample.layout, VALUES // PARTS), newest=True)
            reference = self.prober.reference(distiller, batch, sample, step)
            if reference is not None:
                numbers = real_values(reference.x0, reference.layout, VALUES // PARTS)
                self._keep("real", reference.x0, numbers, newest=False)
                values |= self._compare()
            values |= self._critic_values(self.prober.critic(distiller, sample, step))
        shares = self.prober.gradient_shares(distiller, batch, step)
        if shares:
            values |= {f"gradient_time_{part}": share for part, share in enumerate(shares, start=1)}
            values["time_share"] = max(shares)
        if self._clips[1]:
            values["clipped"] = self._clips[0] / self._clips[1]
            self._clips = [0, 0]
        return values

    def _count_clips(self, distiller: Distiller) -> None:
        students = int(distiller.student_steps)
        if students > self._students:
            self._students = students
            self._clips[0] += float(distiller.latest["grad_norm/student"]) > distiller.grad_clip
            self._clips[1] += 1

    def _keep(self, side: str, x: Tensor, numbers: Float[Tensor, " value"], *, newest: bool) -> None:
        """Add to what is kept of a side: the newest, or the first until there are enough."""
        rows = sketch(x, self.seed) if x.ndim > 1 else x.detach().float().cpu()[:, None]
        for name, new, limit in ((f"{side} rows", rows, self.samples), (f"{side} values", numbers, VALUES)):
            old = self._kept.get(name, new[:0])
            if old.shape[1:] == new.shape[1:]:
                both = torch.cat([old, new])
                self._kept[name] = both[-limit:] if newest else both[:limit]

    def _compare(self) -> dict[str, float]:
        real, fake = self._kept["real values"], self._kept["fake values"]
        center, limit = real.median(), (real - real.median()).abs().quantile(1 - TAIL)
        values = {
            "std_ratio": float(fake.std() / real.std()),
            "saturation": float(((fake - center).abs() > limit).float().mean()),
        }
        real_rows, fake_rows = self._kept["real rows"], self._kept["fake rows"]
        count = min(len(real_rows), len(fake_rows))
        if count >= ENOUGH and real_rows.shape[1] == fake_rows.shape[1]:
            values["diversity"] = spread(fake_rows[-count:]) / spread(real_rows[:count])
            values["coverage"] = coverage(real_rows[:count], fake_rows[-count:])
        return values

    def _critic_values(self, sums: dict[str, float] | None) -> dict[str, float]:
        if sums is None:
            return {}
        self._critic = [*self._critic, sums][-CRITIC_WINDOW:]
        true, given = (sum(s[name] for s in self._critic) for name in ("true", "given"))
        values = {"critic_error": sums["error"] ** 0.5, "critic_truth": true / max(given, 1e-12)}
        if "real values" in self._kept:
            scale = float(self._kept["real values"].std())
            lasting = sum(s["lasting"] for s in self._critic) / len(self._critic)
            values["gap"] = (given / len(self._critic)) ** 0.5 / scale
            values["critic_bias"] = max(0.0, lasting) ** 0.5 / scale
        return values


def write_alarms(folder: Path, alarms: list[Alarm]) -> None:
    """`health.json` in a run's folder, whole at any moment."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (ALARMS + ".partial")
    partial.write_text(json.dumps(alarms, indent=2) + "\n")
    os.replace(partial, folder / ALARMS)


def read_alarms(folder: Path) -> list[Alarm]:
    """The alarms of a run in the order in which they were raised; empty where none was or nobody looked."""
    path = folder / ALARMS
    return json.loads(path.read_text()) if path.is_file() else []
