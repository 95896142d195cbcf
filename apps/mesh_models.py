"""The models that the mesh commands take: their options, and students beside their teachers."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.modalities.shape3d.pipeline import MeshModel


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="objects", help="bundled preset or TRELLIS folder (%(default)s)")
    parser.add_argument("--image-encoder", type=Path, help="DINOv2 weights, for folders without an encoder")
    parser.add_argument(
        "--structure-student",
        type=Path,
        metavar="FILE",
        help="student of the first stage, such as MDT-dist's: .safetensors beside its .json, or a checkpoint "
        ".pt in a run of TRELLIS's trainer",
    )
    parser.add_argument("--latent-student", type=Path, metavar="FILE", help="likewise of the second stage")
    parser.add_argument("--device", default="cpu", help="device of the model (%(default)s)")


def given_students(args: argparse.Namespace) -> dict[str, Path]:
    """By the role of the flow whose place they take."""
    from fewstep.modalities.shape3d.released.pipeline import LATENT_FLOW, STRUCTURE_FLOW

    given = {STRUCTURE_FLOW: args.structure_student, LATENT_FLOW: args.latent_student}
    return {role: path for role, path in given.items() if path is not None}


def student_and_teacher(args: argparse.Namespace) -> "tuple[MeshModel, MeshModel]":
    """Both of a folder; or students that are given, and what the folder has them measured against.

    Raises:
        ValueError: for a model of words, as measuring takes pictures.
        FileNotFoundError: there is no student, or no teacher.
    """
    from fewstep.modalities.shape3d.pipeline import TEACHER, MeshModel, find_folder
    from fewstep.modalities.shape3d.released.pipeline_json import FILE, TEXT_PIPELINE, read_pipeline

    folder = find_folder(args.model)
    if read_pipeline(folder).name == TEXT_PIPELINE:
        raise ValueError(f"--model {args.model} makes meshes of words; meshes of pictures are measured here")
    students = given_students(args)
    # a folder of TRELLIS is one pipeline, from whose flows the students that are given were distilled
    teacher = not students or (folder / TEACHER / FILE).is_file()
    load: dict[str, Any] = {"image_encoder": args.image_encoder, "device": args.device}
    student = MeshModel.load(args.model, students=students, **load)
    return student, MeshModel.load(args.model, teacher=teacher, **load)
