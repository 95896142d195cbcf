"""``fewstep pack``: trained networks of the driving world into one folder that every command accepts."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, default=Path("runs/driving"), help="folder of the training runs")
    parser.add_argument("--student", default="student", help="run whose student is packed")
    parser.add_argument("-o", "--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--steps", type=int, default=2, help="default number of denoising steps")
    parser.add_argument("--teacher-steps", type=int, default=50, help="the teacher's own number of steps")


def run(args: argparse.Namespace) -> int:
    from fewstep.modalities.video.packing import pack_driving

    curves = {name: args.runs / name / "curves.png" for name in ("codec", "teacher", "causal", args.student)}
    pack_driving(
        args.out,
        codec=args.runs / "codec" / "model",
        teacher=args.runs / "teacher" / "model",
        student=args.runs / args.student / "model",
        default_steps=args.steps,
        teacher_steps=args.teacher_steps,
        curves={name: picture for name, picture in curves.items() if picture.is_file()},
    )
    print(f"Wrote {args.out}. Try: fewstep stream {args.out}")
    return 0
