"""`fewstep eval protein`: are students' backbones as good as the teacher's, as varied, and how fast."""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewstep.apps.eval_video import Clock
from fewstep.apps.records import Record, Setting, machine_settings, write_json
from fewstep.apps.score_table import print_scores

if TYPE_CHECKING:
    from fewstep.modalities.protein.chains import Chain
    from fewstep.modalities.protein.data.chain_set import Split
    from fewstep.modalities.protein.evaluation import Measures
    from fewstep.modalities.protein.pipeline import ProteinModel, Sampling

DEFINITIONS = """\
Each row is a set of designs of the same lengths and seeds. source=teacher: the teacher, with sampler=sde
(Proteina's, with its gain capped so that it is stable in few steps), ode, or renoise (the student's own way
to draw, which a student has to beat). Other sources are students. noise is the factor on the standard
deviation of all noise: 1 as in training, below 1 modulated. source=real: chains of the validation split.
bond_mean: of consecutive CA atoms; bonds_within: share within 0.1 A of 3.8. clash_free: designs without two
  CA atoms, at least three apart along the chain, nearer than 3 A. valid: clash-free, no bond off by 0.4 A.
radius_ratio: radius of gyration over that of a compact chain, 2.2 L^0.38. helix and strand: residues, by
  P-SEA. right_handed: share of right-handed among helical turns.
frechet: squared Frechet distance to training chains of the same lengths, in 20 features of CA-CA distances at
  2 to 27 residues in units of their standard deviations (distance_features.py). fold_jsd: ten times the
  Jensen-Shannon divergence of the shares of mainly alpha, mainly beta, alpha beta and other chains from those
  chains' (0 to 6.93); fold_score: how many of these four there are in effect.
mean_tm: TM-score of two designs of a row, lower is more varied; clusters: groups at TM 0.5, per design.
  nearest_tm: greatest TM-score to a training chain that a search finds, lower is newer.
mpnn_nll: nats per residue by which ProteinMPNN doubts its own sequences; low, too, where these repeat a few
  residues, as they do on senseless chains. mpnn_information: entropy of the residues that it uses, less that
  doubt: how much a backbone tells of its sequence. Both are proxies; designability itself needs a folding
  network and is not measured here.
designs_per_second: of a batch, on a CPU by processor time (over all threads), else by the clock.
  speed_ratio: to the teacher at its own number of steps in this run.
"""

ROWS = ("source", "sampler", "steps", "noise", "samples")
UNITS = {
    "bond_mean": "A",
    "bonds_within": "%",
    "clash_free": "%",
    "valid": "%",
    "radius_ratio": "x",
    "helix": "%",
    "strand": "%",
    "right_handed": "%",
    "frechet": "",
    "fold_jsd": "nats",
    "fold_score": "",
    "mean_tm": "",
    "clusters": "%",
    "nearest_tm": "",
    "mpnn_nll": "nats",
    "mpnn_information": "nats",
    "designs_per_second": "1/s",
    "speed_ratio": "x",
}
TEACHER, LESS = "teacher", 100
REAL_PER_DESIGN = 4  # training chains that a set of designs is compared with
SHEET_DESIGNS, SHEET_COLUMNS = 12, 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is generated and measured.

    Args:
        designs: of each row.
        steps: few ones, of students and teacher alike.
        compared, searched, candidates, designed: see ``Measures``.
    """

    designs: int
    steps: tuple[int, ...]
    compared: int
    searched: int
    candidates: int
    designed: int


FULL = Plan(designs=64, steps=(16, 8, 4, 2, 1), compared=24, searched=16, candidates=24, designed=16)
QUICK = Plan(designs=3, steps=(16, 4), compared=3, searched=1, candidates=8, designed=1)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row: who draws designs, and how.

    Args:
        network: ``teacher`` or a student.
        sampler: ``sde``, ``ode``, ``renoise``, or ``student``.
        noise: factor on the standard deviation; None where there is no noise.
    """

    network: str
    sampler: str
    how: "Sampling"
    noise: float | None

    def settings(self, samples: int) -> dict[str, Setting]:
        """Of its records."""
        from fewstep.modalities.protein.pipeline import steps_of

        return {
            "source": self.network,
            "sampler": self.sampler,
            "steps": steps_of(self.how),
            "noise": None if self.noise is None else round(self.noise, 3),
            "samples": samples,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = DEFINITIONS
    parser.add_argument("--model", default="chains", help="bundled preset or model folder (%(default)s)")
    parser.add_argument(
        "--length", help="residues, as fewstep protein takes them (those of the training data)"
    )
    parser.add_argument("--designs", type=int, help="of each row (64; with --quick 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the first design (%(default)s)")
    parser.add_argument("--device", default="cpu", help="device of the model (%(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch (its own default)")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw twelve of the students' designs")


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    from fewstep.apps.bench_stream import torch_threads
    from fewstep.modalities.protein.pipeline import ProteinModel

    _validate(args)
    plan = QUICK if args.quick else FULL
    if args.designs is not None:
        plan = replace(plan, designs=args.designs)
    with torch_threads(args.threads):
        model = ProteinModel.load(args.model, device=args.device)
        measures, missing = measures_of(plan)
        evaluation = Evaluation(model, measures, plan, length=args.length, seed=args.seed)
        clock = Clock()
        evaluation.run(clock)
    settings: dict[str, Setting] = {
        **machine_settings(args.device),
        "model": args.model,
        "lengths": evaluation.length,
        "seed": args.seed,
    }
    records = [
        Record(name=one.name, value=one.value, unit=one.unit, settings={**settings, **one.settings})
        for one in evaluation.records
    ]
    print(DEFINITIONS)
    print_scores(records, rows=ROWS, sections=("source", "sampler"), title="fewstep eval protein")
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    for message in missing:
        print(message)
    print(clock)
    if args.json is not None:
        write_json(args.json, records)
    if args.sheet is not None:
        save_designs_sheet(evaluation, args.sheet)
    return 0


def _validate(args: argparse.Namespace) -> None:
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {args.threads}")
    if args.designs is not None and args.designs < 2:
        raise ValueError(f"--designs must be at least 2, got {args.designs}")
    if args.sheet is not None and (args.sheet.suffix.lower() != ".png" or not args.sheet.parent.is_dir()):
        raise ValueError(f"--sheet must be a .png file in a folder that exists, got {args.sheet}")


def measures_of(plan: Plan) -> tuple["Measures", list[str]]:
    """What can be measured here, and a line about what cannot."""
    from fewstep.apps.protein_designs import known_chains
    from fewstep.modalities.protein.evaluation import Measures
    from fewstep.modalities.protein.sequence_design import SequenceDesigner

    missing = []
    try:
        designer = SequenceDesigner()
    except ImportError as error:
        designer = None
        missing.append(f"mpnn_nll is not measured: {error}")
    measures = Measures(
        compared=plan.compared,
        searched=plan.searched,
        candidates=plan.candidates,
        designed=plan.designed,
        known=known_chains()[0],
        designer=designer,
    )
    return measures, missing


def lines_of(model: "ProteinModel", steps: tuple[int, ...]) -> list[Line]:
    """The teacher at its own and at fewer steps, then at few ones by each sampler; then the students."""
    modulated = float(model.card["noise_scale"])
    lines = _lines_of_teacher(model, steps, modulated) if model.has_teacher else []
    for student in model.students:
        fresh = model.card["students"][student]["renoise"] == "fresh"
        for scale in dict.fromkeys((modulated, 1.0)):
            for number in steps if fresh else (None,):
                try:
                    how = model.sampling(
                        student=student, steps=number or max(model.step_grids(student)), noise_scale=scale
                    )[1]
                except ValueError:  # it was not distilled to so many steps
                    continue
                lines.append(Line(network=student, sampler="student", how=how, noise=scale))
    return lines


def _lines_of_teacher(model: "ProteinModel", steps: tuple[int, ...], modulated: float) -> list[Line]:
    from fewstep.modalities.protein.student_sampling import StudentSampling
    from fewstep.modalities.protein.times import student_grid

    own = model.teacher_sampling
    noise = own.noise_variance**0.5
    lines = [
        Line(network=TEACHER, sampler="sde", how=replace(own, num_steps=number), noise=noise)
        for number in (own.num_steps, *sorted({LESS, *steps} - {own.num_steps}, reverse=True))
    ]
    lines += [
        Line(network=TEACHER, sampler="ode", how=replace(own, num_steps=number, stochastic=False), noise=None)
        for number in steps
    ]
    lines += [
        Line(
            network=TEACHER,
            sampler="renoise",
            how=StudentSampling(times=student_grid(number), noise_scale=modulated),
            noise=modulated,
        )
        for number in steps
    ]
    return lines


@dataclass
class Evaluation:
    """Everything that is generated and scored for one model.

    `designs` keeps what was made, by line.
    """

    model: "ProteinModel"
    measures: "Measures"
    plan: Plan
    length: str | None = None
    seed: int = 0
    records: list[Record] = field(default_factory=list)
    designs: dict[Line, "list[Chain]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        low, high = self.model.lengths
        self.length = self.length or f"{low}-{high}"

    def run(self, clock: "Clock") -> None:
        """Real chains first, then row by row."""
        from fewstep.modalities.protein.evaluation import scores, timed
        from fewstep.modalities.protein.lengths import lengths_of, parsed_lengths

        lengths = lengths_of(parsed_lengths(str(self.length)), self.plan.designs)
        seeds = list(range(self.seed, self.seed + len(lengths)))
        now = time.process_time if self.model.device.type == "cpu" else time.perf_counter
        with clock.part("real chains"):
            compared = real_chains(sorted(lengths * REAL_PER_DESIGN), split="train")
            real = real_chains(lengths)
            self._add(
                scores(real, self.measures, real=compared),
                source="real",
                sampler=None,
                steps=None,
                noise=None,
                samples=len(real),
            )
        own = None
        for line in lines_of(self.model, self.plan.steps):
            with clock.part(f"{line.network}, {line.sampler}"):
                self.model.sampled(
                    line.network, line.how, lengths[:1], seeds=seeds[:1]
                )  # loaded before it is timed

                def draw(line: Line = line) -> "list[Chain]":
                    return self.model.sampled(line.network, line.how, lengths, seeds=seeds)

                self.designs[line], speed = timed(draw, now)
            own = own or speed
            with clock.part("measuring"):
                found = scores(self.designs[line], self.measures, real=compared)
            found["designs_per_second"] = speed
            if self.model.has_teacher:
                found["speed_ratio"] = speed / own
            self._add(found, **line.settings(len(lengths)))

    def _add(self, scores: Mapping[str, float], **settings: Setting) -> None:
        for name, value in scores.items():
            self.records.append(Record(name=name, value=value, unit=UNITS[name], settings=settings))


def real_chains(lengths: list[int], *, split: "Split" = "val") -> "list[Chain]":
    """Another chain of the split for each length, the nearest that is as long, cut to it."""
    from fewstep.modalities.protein.data.chain_set import bundled_chain_set

    chains = bundled_chain_set()
    numbers = chains.chosen(split, lengths=(0, 2**15 - 1))
    sizes = chains.lengths[numbers]
    taken: list[Chain] = []
    free = np.ones(len(numbers), bool)
    for length in lengths:
        fits = np.flatnonzero(free & (sizes >= length))
        fits = fits if len(fits) else np.flatnonzero(free if free.any() else ~free)
        place = int(fits[np.abs(sizes[fits] - length).argmin()])
        free[place] = False
        taken.append(chains.chain(int(numbers[place]))[:length].astype(np.float64))
    return taken


def save_designs_sheet(evaluation: Evaluation, path: Path) -> None:
    """Twelve designs of the default student at its default steps, evenly over the lengths."""
    from PIL import Image

    from fewstep.modalities.protein.chains import padded
    from fewstep.modalities.protein.evaluation import chosen
    from fewstep.modalities.protein.pictures import chain_picture, sheet
    from fewstep.modalities.protein.secondary_structure import p_sea

    model = evaluation.model
    wanted = model.sampling()
    line = next(
        (line for line in evaluation.designs if (line.network, line.how) == wanted),
        next(iter(evaluation.designs)),
    )
    chains = chosen(evaluation.designs[line], SHEET_DESIGNS)
    letters = p_sea(padded(chains)).texts()
    pictures = [chain_picture(chain, letters=text) for chain, text in zip(chains, letters, strict=True)]
    pixels = sheet(pictures, columns=SHEET_COLUMNS).mul(255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, optimize=True)
