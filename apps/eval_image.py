"""`fewstep eval image`: do the students show what they are told, look like real pictures, and how fast."""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewstep.apps.eval_video import Clock
from fewstep.apps.files import check_folder, check_output
from fewstep.apps.records import Record, Setting, machine_settings, write_json
from fewstep.apps.score_table import print_scores

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.modalities.image.classifier import AttributeClassifier
    from fewstep.modalities.image.evaluation import Prompt, Reference
    from fewstep.modalities.image.pipeline import ImageModel

DEFINITIONS = """\
Each row is a set of pictures, one prompt and one seed each; all rows of a section have the same prompts and
seeds. source=teacher: Euler's method with guidance at its own number of steps, and at the students' numbers
(undistilled). source=real is other real pictures against the same reference, all attributes named: no model
can be asked for more. phrasing=heldout: sentences and synonyms that training never used. pairs=heldout:
pairs of category and colour that no training picture shows.
colour_accuracy: pictures whose object has the named colour, measured from pixels. category_accuracy and
  detail_accuracy (material, view, light, tone and background, where the prompt names them, which are also
  given one by one): by a small classifier trained on the same world.
frechet_classifier: squared Frechet distance to real pictures in the classifier's features. It falls with the
  number of pictures: compare rows with equal numbers.
high_frequency_energy: mean absolute difference of neighbouring pixels in a row; blur lowers it.
diversity: root-mean-square distance of two pictures of one short prompt ("a blue mug") that differ in the
  seed; 0 is collapse. For source=real, of two real pictures of one category and colour.
seconds_per_image: denoising and decoding of a batch of 16, its median; prompts are encoded before. On a CPU
  seconds of processor time (over all threads), else by the clock. speed_ratio: to the teacher at its own
  number of steps in this run.
"""

REFERENCE = "reference.json"
CLASSIFIER = "classifier"
REAL_SPLITS = {"train": "val", "heldout": "heldout"}  # folders of real pictures, by pairs
ROWS = ("phrasing", "pairs", "source", "steps", "samples")
UNITS = {
    "colour_accuracy": "%",
    "category_accuracy": "%",
    "detail_accuracy": "%",
    "material_accuracy": "%",
    "view_accuracy": "%",
    "light_accuracy": "%",
    "tone_accuracy": "%",
    "background_accuracy": "%",
    "frechet_classifier": "",
    "high_frequency_energy": "grey levels",
    "diversity": "grey levels",
    "seconds_per_image": "s",
    "speed_ratio": "x",
}
SHEET_PROMPTS = 8
HEADING_CHARACTERS = 7  # over a column of 64 pixels
TEACHER = "teacher"

Row = tuple[str, int]  # who makes the pictures ("teacher" or a student), and in how many steps


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is generated.

    Args:
        pictures: by (phrasing, pairs).
        captions: that diversity is measured on.
        seeds: of each of them.
    """

    pictures: Mapping[tuple[str, str], int]
    captions: int
    seeds: int


FULL = Plan(
    pictures={("train", "train"): 232, ("heldout", "train"): 232, ("train", "heldout"): 112},
    captions=12,
    seeds=8,
)
QUICK = Plan(
    pictures={("train", "train"): 58, ("heldout", "train"): 29, ("train", "heldout"): 28},
    captions=4,
    seeds=4,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = DEFINITIONS
    parser.add_argument("--model", default="objects", help="bundled preset or model folder (%(default)s)")
    parser.add_argument("--device", default="cpu", help="device of the model (%(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch (its own default)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and noise (%(default)s)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help=f"real pictures to compare with: DIR/val and DIR/heldout (the model's {REFERENCE})",
    )
    parser.add_argument(
        "--write-reference",
        action="store_true",
        help=f"measure the real pictures of --data, write {REFERENCE} into the model, and stop",
    )
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="write prompts x sources side by side")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write every picture that was scored")


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    from fewstep.apps.bench_stream import torch_threads
    from fewstep.modalities.image.classifier import load_classifier
    from fewstep.modalities.image.pipeline import ImageModel

    _validate(args)
    with torch_threads(args.threads):
        model = ImageModel.load(args.model, device=args.device)
        if not (model.folder / CLASSIFIER).is_dir():
            raise ValueError(
                f"{model.folder} has no {CLASSIFIER}; train image/objects/classifier and pack it"
            )
        classifier = load_classifier(model.folder / CLASSIFIER)
        reference = find_reference(args.data, model, classifier)
        if args.write_reference:
            reference.save(model.folder / REFERENCE)
            print(f"{model.folder / REFERENCE}: {reference.source}")
            return 0
        evaluation = Evaluation(model, classifier, reference, QUICK if args.quick else FULL, seed=args.seed)
        clock = Clock()
        evaluation.run(clock)
    settings: dict[str, Setting] = {
        **machine_settings(args.device),
        "model": args.model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "resolution": f"{model.size[1]}x{model.size[0]}",
        "guidance_scale": float(model.card["teacher"]["guidance_scale"]),
        "seed": args.seed,
        "reference": reference.source,
    }
    records = [
        Record(name=one.name, value=one.value, unit=one.unit, settings={**settings, **one.settings})
        for one in evaluation.records
    ]
    print(DEFINITIONS)
    print_scores(records, rows=ROWS, sections=("phrasing", "pairs"), title="fewstep eval image")
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    print(clock)
    if args.json is not None:
        write_json(args.json, records)
    if args.sheet is not None:
        save_samples_sheet(evaluation, args.sheet)
    if args.out is not None:
        _write_pictures(evaluation, args.out)
    return 0


def find_reference(data: Path | None, model: "ImageModel", classifier: "AttributeClassifier") -> "Reference":
    """Statistics of real pictures: of a folder, or of the file beside the model."""
    from fewstep.core.checkpoints import read_card
    from fewstep.modalities.image.evaluation import Reference
    from fewstep.modalities.image.files import load_pictures

    weights = read_card(model.folder / CLASSIFIER).weights_sha256
    if data is None:
        if not (model.folder / REFERENCE).is_file():
            raise FileNotFoundError(f"{model.folder} has no {REFERENCE}: give --data DIR")
        return Reference.load(model.folder / REFERENCE, weights=weights)
    pictures = {
        pairs: load_pictures(data / split, size=model.size[0]) for pairs, split in REAL_SPLITS.items()
    }
    counts = ", ".join(f"{len(part.labels)} of {pairs} pairs" for pairs, part in pictures.items())
    return Reference.of(pictures, classifier, weights=weights, source=f"rendered pictures: {counts}")


def _validate(args: argparse.Namespace) -> None:
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {args.threads}")
    if args.sheet is not None:
        check_output(args.sheet, ".png", option="--sheet")
    if args.out is not None:
        check_folder(args.out, option="--out")
    if args.write_reference and args.data is None:
        raise ValueError("--write-reference needs --data DIR with real pictures")
    if args.data is None:
        return
    for split in REAL_SPLITS.values():
        if not (args.data / split).is_dir():
            raise FileNotFoundError(
                f"--data: no folder {args.data / split}; fewstep render --world objects makes it"
            )


@dataclass
class Evaluation:
    """Everything that is generated and scored for one model.

    `pictures` keeps what was made, by (phrasing, pairs) and then by (source, steps).
    """

    model: "ImageModel"
    classifier: "AttributeClassifier"
    reference: "Reference"
    plan: Plan
    seed: int = 0
    records: list[Record] = field(default_factory=list)
    prompts: dict[tuple[str, str], list["Prompt"]] = field(default_factory=dict)
    pictures: dict[tuple[str, str], dict[Row, np.ndarray]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """Who is scored at how many steps: the teacher at its own number first."""
        model, rows = self.model, []
        numbers = sorted({steps for name in model.students for steps in model.steps_available(name)})
        for steps in (model.teacher_steps, *(n for n in reversed(numbers) if n != model.teacher_steps)):
            rows.append((TEACHER, steps))
        for name in model.students:
            rows += [(name, steps) for steps in reversed(model.steps_available(name))]
        return rows

    def run(self, clock: "Clock") -> None:
        """Generate and score, section by section."""
        from fewstep.modalities.image.evaluation import draw_prompts

        diversity: dict[Row, float] = {}
        seconds: dict[Row, float] = {}
        for (phrasing, pairs), count in self.plan.pictures.items():
            group = phrasing, pairs
            self.prompts[group] = draw_prompts(
                count,
                phrasing="train" if phrasing == "train" else "heldout",
                heldout_pairs=pairs == "heldout",
                seed=self.seed,
            )
            with clock.part("prompts"):
                features = self.model.encode_prompts([prompt.text for prompt in self.prompts[group]])
            self.pictures[group] = {}
            if phrasing == "train":
                self._add(
                    self.reference.floor[pairs],
                    phrasing=None,
                    pairs=pairs,
                    source="real",
                    steps=None,
                    samples=self.reference.samples[pairs],
                )
            seeds = [prompt.seed for prompt in self.prompts[group]]
            for row in self.rows:
                with clock.part(f"{row[0]}, {row[1]} steps"):
                    self.pictures[group][row], timed = self._generate(row, features, seeds)
                    seconds.setdefault(row, timed)
                    if row not in diversity:
                        diversity[row] = self._diversity(row)
                with clock.part("measuring"):
                    scores = self._scores(group, row)
                if group == next(iter(self.plan.pictures)):
                    own = seconds[TEACHER, self.model.teacher_steps]
                    scores |= {"diversity": diversity[row], "seconds_per_image": seconds[row]}
                    scores["speed_ratio"] = own / seconds[row]
                self._add(scores, phrasing=phrasing, pairs=pairs, source=row[0], steps=row[1], samples=count)

    def _scores(self, group: tuple[str, str], row: Row) -> dict[str, float]:
        from fewstep.modalities.image.evaluation import Measured, appearance, obedience

        prompts = self.prompts[group]
        measured = Measured.of(self.pictures[group][row], self.classifier)
        scores = obedience(
            measured, [prompt.attributes for prompt in prompts], [prompt.named for prompt in prompts]
        )
        return scores | appearance(measured, self.reference.moments[group[1]])

    def _diversity(self, row: Row) -> float:
        from fewstep.modalities.image.metrics import pairwise_distance
        from fewstep.modalities.objects.captions import canonical_caption

        chosen = self.prompts["train", "train"][: self.plan.captions]
        features = self.model.encode_prompts([canonical_caption(prompt.attributes) for prompt in chosen])
        count = self.plan.seeds
        seeds = [prompt.seed + number for prompt in chosen for number in range(1, count + 1)]
        pictures = self._generate(row, features.repeat_interleave(count, 0), seeds)[0]
        return pairwise_distance(list(pictures.reshape(len(chosen), count, *pictures.shape[1:])))

    def _generate(self, row: Row, features: "Tensor", seeds: Sequence[int]) -> tuple[np.ndarray, float]:
        """Pictures, and the median over whole batches of the seconds that one of them took."""
        from fewstep.modalities.image.pipeline import BATCH

        source, steps = row
        model, pictures, seconds = self.model, [], []
        now = time.process_time if model.device.type == "cpu" else time.perf_counter
        for start in range(0, len(seeds), BATCH):
            some, rows = seeds[start : start + BATCH], features[start : start + BATCH]
            started = now()
            if source == TEACHER:
                latents = model.teacher_latents(rows, seeds=some, num_steps=steps)
            else:
                latents = model.student_latents(rows, seeds=some, steps=steps, student=source)
            pictures.append(model.decode(latents))
            seconds.append((now() - started) / len(some))
        return np.concatenate(pictures), float(np.median(seconds))

    def _add(self, scores: Mapping[str, float], **settings: Setting) -> None:
        for name, value in scores.items():
            self.records.append(Record(name=name, value=value, unit=UNITS[name], settings=settings))


def save_samples_sheet(evaluation: Evaluation, path: Path) -> None:
    """Rows are prompts, columns sources and steps; short prompts of pairs that training shows."""
    from fewstep.apps.contact_sheet import Row as SheetRow
    from fewstep.apps.contact_sheet import save_sheet

    group = "train", "train"
    prompts, pictures = evaluation.prompts[group], evaluation.pictures[group]
    numbers: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        numbers.setdefault(prompt.attributes.category, number)
    headings = [f"{source[:HEADING_CHARACTERS]} {steps}" for source, steps in pictures]
    rows = [
        SheetRow(label=prompts[number].text, groups=[made[number][None] for made in pictures.values()])
        for number in list(numbers.values())[:SHEET_PROMPTS]
    ]
    save_sheet(path, headings, rows)


def _write_pictures(evaluation: Evaluation, out: Path) -> None:
    from PIL import Image

    for (phrasing, pairs), made in evaluation.pictures.items():
        for (source, steps), pictures in made.items():
            folder = out / f"{phrasing}-phrasing-{pairs}-pairs" / f"{source}-{steps}-steps"
            folder.mkdir(parents=True, exist_ok=True)
            for number, picture in enumerate(pictures):
                Image.fromarray(picture).save(folder / f"{number:04d}.png")
