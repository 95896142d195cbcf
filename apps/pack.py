"""``fewstep pack``: trained networks of a bundled world into one folder that every command accepts."""

import argparse
from pathlib import Path

STUDENTS = ("dmd2", "tdm", "sid", "split_mean_flow")  # of the world of objects, the default one first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--world", choices=("driving", "objects"), default="driving", help="what was trained (%(default)s)"
    )
    parser.add_argument("--runs", type=Path, help="folder of the training runs (runs/WORLD)")
    parser.add_argument(
        "--student", help="run whose student is packed; of objects, the default one (student, dmd2)"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--steps", type=int, help="default number of denoising steps (2, of objects 4)")
    parser.add_argument("--teacher-steps", type=int, help="the teacher's own number of steps (50, 32)")


def run(args: argparse.Namespace) -> int:
    runs = Path("runs") / args.world if args.runs is None else args.runs
    pack = _pack_driving if args.world == "driving" else _pack_objects
    pack(args, runs)
    command = "stream" if args.world == "driving" else 'image "a blue mug" -o mug.png --model'
    print(f"Wrote {args.out}. Try: fewstep {command} {args.out}")
    return 0


def _pack_driving(args: argparse.Namespace, runs: Path) -> None:
    from fewstep.modalities.video.packing import pack_driving

    student = args.student or "student"
    pack_driving(
        args.out,
        codec=runs / "codec" / "model",
        teacher=runs / "teacher" / "model",
        student=runs / student / "model",
        default_steps=2 if args.steps is None else args.steps,
        teacher_steps=50 if args.teacher_steps is None else args.teacher_steps,
        curves=_curves(runs, ("codec", "teacher", "causal", student)),
    )


def _pack_objects(args: argparse.Namespace, runs: Path) -> None:
    from fewstep.modalities.image.packing import CLASSIFIER, pack_objects

    default = args.student or STUDENTS[0]
    wanted = dict.fromkeys((default, *STUDENTS))
    students = {name: runs / name / "model" for name in wanted if (runs / name / "model").is_dir()}
    classifier = runs / CLASSIFIER / "model"
    measured = (CLASSIFIER,) if classifier.is_dir() else ()
    pack_objects(
        args.out,
        # the decoder's run holds the whole autoencoder, its decoder trained further
        codec=runs / ("decoder" if (runs / "decoder" / "model").is_dir() else "codec") / "model",
        teacher=runs / "teacher" / "model",
        students=students,
        default_student=default,
        default_steps=4 if args.steps is None else args.steps,
        teacher_steps=32 if args.teacher_steps is None else args.teacher_steps,
        classifier=classifier if measured else None,
        curves=_curves(runs, ("codec", "teacher", *students, *measured)),
    )


def _curves(runs: Path, names: tuple[str, ...]) -> dict[str, Path]:
    pictures = {name: runs / name / "curves.png" for name in names}
    return {name: picture for name, picture in pictures.items() if picture.is_file()}
