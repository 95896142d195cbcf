"""``fewstep pack``: trained networks of a bundled world into one folder that every command accepts."""

import argparse
from pathlib import Path
from typing import Any

STUDENTS = ("dmd2", "tdm", "sid", "split_mean_flow")  # of the world of objects, the default one first
PHASES = ("vd", "vm")  # of MDT, the later one first
TRY = {
    "driving": "stream",
    "objects": 'image "a blue mug" -o mug.png --model',
    "shapes": "mesh mug.png -o mug.glb --model",
    "chains": "protein --length 80 -o designs --model",
}
RUNS = {"chains": "protein"}  # whose runs have another name than the world
PROTEIN_STUDENTS = ("sid", "dmd", "dmd_8", "tdm")  # of the world of chains, the default one first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--world",
        choices=("driving", "objects", "shapes", "chains"),
        default="driving",
        help="what was trained (%(default)s)",
    )
    parser.add_argument(
        "--runs", type=Path, help="folder of the training runs (runs/WORLD, of chains runs/protein)"
    )
    parser.add_argument(
        "--student",
        help="run whose student is packed (student); of objects and chains, the default one (dmd2, sid); of "
        "shapes, the last "
        "phase of MDT, of both stages or of each (vd where there is one, else vm; or such as vd,vm)",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="model folder to write")
    parser.add_argument(
        "--steps",
        type=_counts,
        help="default number of denoising steps (2, objects 4, shapes 2x2, chains 16)",
    )
    parser.add_argument(
        "--teacher-steps", type=_counts, help="the teacher's own number of steps (50, 32, 25x25, 400)"
    )


def run(args: argparse.Namespace) -> int:
    runs = Path("runs") / RUNS.get(args.world, str(args.world)) if args.runs is None else args.runs
    packs = {
        "driving": _pack_driving,
        "objects": _pack_objects,
        "shapes": _pack_shapes,
        "chains": _pack_chains,
    }
    packs[args.world](args, runs)
    print(f"Wrote {args.out}. Try: fewstep {TRY[args.world]} {args.out}")
    return 0


def _counts(text: str) -> tuple[int, ...]:
    """One number, or two with an x between them."""
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 1 on, or two such as 2x2")
    return tuple(int(part) for part in parts)


def _one(counts: tuple[int, ...] | None, default: int) -> int:
    if counts is not None and len(counts) != 1:
        raise ValueError(f"steps {'x'.join(map(str, counts))}: this world has one stage; give one number")
    return default if counts is None else counts[0]


def _two(counts: tuple[int, ...] | None, default: tuple[int, int]) -> tuple[int, int]:
    return default if counts is None else (counts[0], counts[-1])


def _pack_driving(args: argparse.Namespace, runs: Path) -> None:
    from fewstep.modalities.video.packing import pack_driving

    student = args.student or "student"
    pack_driving(
        args.out,
        codec=runs / "codec" / "model",
        teacher=runs / "teacher" / "model",
        student=runs / student / "model",
        default_steps=_one(args.steps, 2),
        teacher_steps=_one(args.teacher_steps, 50),
        curves=_curves(runs, ("codec", "teacher", "causal", student)),
    )


def _pack_objects(args: argparse.Namespace, runs: Path) -> None:
    from fewstep.modalities.image.packing import CLASSIFIER, pack_objects

    default = args.student or STUDENTS[0]
    wanted = dict.fromkeys((default, *STUDENTS))
    students = {name: runs / name / "model" for name in wanted if (runs / name / "model").is_dir()}
    classifier = runs / CLASSIFIER / "model"
    measured = (CLASSIFIER,) if classifier.is_dir() else ()
    student = runs / default / "model"
    pack_objects(
        args.out,
        # the decoder's run holds the whole autoencoder, its decoder trained further
        codec=_trained_or_told(runs, ("decoder", "codec"), student),
        teacher=_trained_or_told(runs, ("teacher",), student),
        students=students,
        default_student=default,
        default_steps=_one(args.steps, 4),
        teacher_steps=_one(args.teacher_steps, 32),
        classifier=classifier if measured else None,
        curves=_curves(runs, ("codec", "teacher", *students, *measured)),
    )


def _trained_or_told(runs: Path, names: tuple[str, ...], student: Path) -> Path:
    """The model of the first of these runs that there is; else what the student was distilled with, which may
    be a bundled preset's.
    """
    from fewstep.core.checkpoints import CARD, read_card
    from fewstep.modalities.image.model_folder import preset_part

    found = [folder for name in names if (folder := runs / name / "model").is_dir()]
    if found or not (student / CARD).is_file():
        return found[0] if found else runs / names[-1] / "model"
    training: Any = read_card(student).training
    told = training.get("model", {}).get("init_args", {}).get("roles", {}).get("init_args", {})
    return preset_part(told[names[-1]], names[-1]) if names[-1] in told else runs / names[-1] / "model"


def _pack_shapes(args: argparse.Namespace, runs: Path) -> None:
    from fewstep.modalities.shape3d.packing import Runs, pack_shapes

    structure, latent = (
        _phase(runs, stage, args.student, place) for place, stage in enumerate(("structure", "latent"))
    )
    names = ("structure_vae", "latent_vae_squeezed", "structure_flow", "latent_flow", structure, latent)
    decoder = runs / "latent_decoder" / "model"  # of the second autoencoder's latents, trained alone
    others = ("latent_vae", "structure_vm", "latent_vm", "latent_decoder")
    pack_shapes(
        args.out,
        Runs(
            structure_vae=runs / names[0] / "model",
            latent_vae=runs / names[1] / "model",
            structure_flow=runs / names[2] / "model",
            latent_flow=runs / names[3] / "model",
            structure_student=runs / names[4] / "model",
            latent_student=runs / names[5] / "model",
            latent_decoder=decoder if decoder.is_dir() else None,
        ),
        steps=_two(args.steps, (2, 2)),
        teacher_steps=_two(args.teacher_steps, (25, 25)),
        curves=_curves(runs, (*names, *others)),
    )


def _phase(runs: Path, stage: str, asked: str | None, place: int) -> str:
    """The run of a stage's student: as asked for, or the last phase that there is."""
    if asked is not None:
        phases = asked.split(",")
        return f"{stage}_{phases[min(place, len(phases) - 1)]}"
    found = [name for phase in PHASES if (runs / (name := f"{stage}_{phase}") / "model").is_dir()]
    if not found:
        raise FileNotFoundError(f"{runs} has no student of the {stage}: train {stage}_vm, then {stage}_vd")
    return found[0]


def _pack_chains(args: argparse.Namespace, runs: Path) -> None:
    from fewstep.modalities.protein.packing import pack_chains
    from fewstep.modalities.protein.sampling import ChainSampling

    default = args.student or PROTEIN_STUDENTS[0]
    wanted = dict.fromkeys((default, *PROTEIN_STUDENTS))
    students = {name: runs / name / "model" for name in wanted if (runs / name / "model").is_dir()}
    parts = ("teacher", "teacher_long")  # the second goes on from the first
    trained = parts[1] if (runs / parts[1] / "model").is_dir() else parts[0]
    pack_chains(
        args.out,
        teacher=runs / trained / "model",
        students=students,
        default_student=default,
        default_steps=_one(args.steps, 16),
        teacher_sampling=ChainSampling(num_steps=_one(args.teacher_steps, 400)),
        curves=_curves(runs, (*parts, *students)),
    )


def _curves(runs: Path, names: tuple[str, ...]) -> dict[str, Path]:
    pictures = {name: runs / name / "curves.png" for name in names}
    return {name: picture for name, picture in pictures.items() if picture.is_file()}
