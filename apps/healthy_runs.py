"""The pictures of `docs/healthy-runs.md`: a good run and three that are really broken.

python -m fewstep.apps.healthy_runs docs/healthy-runs
"""

import argparse
import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from matplotlib.axes import Axes

    from fewstep.core.objectives.contract import Diagnostics, Objective, Turn
    from fewstep.core.training.health import Alarm

STEPS = 400
EVERY = 10
POINTS = 1500
HALF_WIDTH = 3.5
PANELS = (  # curve, title, value of a perfect student, top of the axis
    ("health/critic_bias", "critic_bias", 0.0, 1.5),
    ("health/std_ratio", "std_ratio", 1.0, 3.0),
    ("health/saturation", "saturation", 0.01, 0.5),
    ("health/coverage", "coverage", 0.97, 1.05),
)
GOOD: dict[str, int | float] = {
    "student_lr": 1e-3,
    "critic_lr": 2e-3,
    "critic_updates": 3,
    "weight_decay": 0.0,
    "ema_decay": 0.95,
}


@dataclass(frozen=True)
class Case:
    """A run of DMD on four clusters: what differs from the good one."""

    name: str
    title: str
    settings: dict[str, int | float] = field(default_factory=dict)
    guidance_scale: float = 1.0
    flipped: bool = False


CASES = (
    Case("good", "a good run"),
    Case("starved-critic", "a starved critic", {"critic_updates": 1, "critic_lr": 1e-4, "student_lr": 5e-3}),
    Case("flipped-sign", "a flipped sign", flipped=True),
    Case("guidance", "too high a guidance scale", guidance_scale=8.0),
)


@dataclass(frozen=True)
class Outcome:
    """What a run left: curves by name, alarms, the averaged student's points, and why it stopped early."""

    series: dict[str, tuple[list[int | float], list[float]]]
    alarms: "list[Alarm]"
    points: "torch.Tensor"
    stopped: str = ""


def train(case: Case, folder: Path, *, steps: int = STEPS) -> Outcome:
    """Train one case in a folder of its own."""
    import torch
    from lightning.pytorch import Trainer, seed_everything

    from fewstep.core.objectives.dmd import DMD
    from fewstep.core.training.clusters import ClusterData, ClusterRoles
    from fewstep.core.training.distiller import Distiller
    from fewstep.core.training.health import Health, read_alarms
    from fewstep.core.training.randomness import SeedEveryBatch
    from fewstep.core.training.report import Report, read_series
    from fewstep.core.training.run_folder import JsonLines, SaveLast

    seed_everything(0, verbose=False)
    roles = ClusterRoles(guidance_scale=case.guidance_scale)
    settings: dict[str, Any] = {**GOOD, **case.settings}
    distiller = Distiller(roles, flipped_dmd() if case.flipped else DMD(), **settings)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        default_root_dir=folder,
        logger=JsonLines(folder),
        log_every_n_steps=EVERY,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[SaveLast(), Health(every_steps=EVERY), Report(), SeedEveryBatch()],
    )
    stopped = ""
    try:
        trainer.fit(distiller, datamodule=ClusterData())
    except FloatingPointError as error:
        stopped = str(error)
    with distiller.ema.swapped(roles.student), torch.no_grad():
        points = roles.sample(torch.arange(POINTS) % 2, torch.Generator().manual_seed(0))
    return Outcome(read_series(folder), read_alarms(folder), points, stopped)


def flipped_dmd() -> "Objective":
    """DMD with teacher and critic exchanged, as by a wrong sign."""
    from fewstep.core.objectives.dmd import DMD

    class Flipped(DMD):
        def student_loss(self, turn: "Turn") -> "tuple[torch.Tensor, Diagnostics]":
            loss, diagnostics = super().student_loss(turn)
            return -loss, diagnostics

    return Flipped()


def draw(case: Case, outcome: Outcome, path: Path) -> None:
    """The student's points over real ones, and four curves, red while an alarm is on."""
    import torch
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from fewstep.core.training.clusters import cluster_points

    figure = Figure(figsize=(11, 2.7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(case.title)
    real = cluster_points(torch.arange(POINTS) % 2, torch.Generator().manual_seed(1))
    axes = figure.add_subplot(1, 5, 1)
    for points, colour in ((real, "0.75"), (outcome.points, "C0")):
        axes.scatter(*points.T.tolist(), s=1.5, color=colour, linewidths=0)
    axes.set_xlim(-HALF_WIDTH, HALF_WIDTH)
    axes.set_ylim(-HALF_WIDTH, HALF_WIDTH)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title("samples (grey: real)", fontsize=9)
    for place, (name, title, perfect, top) in enumerate(PANELS, start=2):
        axes = figure.add_subplot(1, 5, place)
        axes.axhline(perfect, color="0.7", linewidth=0.8, linestyle="--")
        _draw_curve(axes, outcome, name)
        axes.set_ylim(0.0, top)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _draw_curve(axes: "Axes", outcome: Outcome, name: str) -> None:
    steps, values = outcome.series[name]
    axes.plot(steps, values, color="C0", linewidth=1.2)
    for alarm in outcome.alarms:
        axes.axvspan(alarm["since"], alarm["until"] or steps[-1], color="tab:red", alpha=0.1, linewidth=0)


def main(argv: "Sequence[str] | None" = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run (%(default)s)")
    args = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            outcome = train(case, Path(folder), steps=args.steps)
        draw(case, outcome, args.folder / f"{case.name}.png")
        print(f"{case.title}: {len(outcome.alarms)} alarms")
        for alarm in outcome.alarms:
            print(f"  step {alarm['since']}, {alarm['name']}: {alarm['message']}")
        if outcome.stopped:
            print(f"  stopped: {outcome.stopped}")


if __name__ == "__main__":
    main()
