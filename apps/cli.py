"""The ``fewstep`` command: finds the subcommand, then imports that one module and no other."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from fewstep import __version__
from fewstep.apps.files import writable
from fewstep.apps.logs import leave_out_chatter

# A subcommand is a module with add_arguments(parser) and run(args) -> exit code.
COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("fewstep.apps.doctor", "say what this machine has, and what each missing piece would give"),
    "stream": ("fewstep.apps.stream", "serve an endless, steerable video to a page in the browser"),
    "gallery": ("fewstep.apps.gallery", "show videos, pictures, meshes and proteins of a folder"),
    "video": ("fewstep.apps.video", "write a video from a prompt to a file"),
    "image": ("fewstep.apps.image", "write pictures from a prompt to files"),
    "mesh": ("fewstep.apps.mesh", "write 3D meshes from pictures or words to files"),
    "protein": ("fewstep.apps.protein", "write protein backbones to files, with a table of what they are"),
    "render": (
        "fewstep.apps.render",
        "render driving videos, pictures of objects, or 3D shapes and meshes, as training data",
    ),
    "chains": ("fewstep.apps.chains", "make a set of protein chains for training from structure files"),
    "backbone": ("fewstep.apps.backbone", "count the table by which CA chains become whole backbones"),
    "models": ("fewstep.apps.models", "convert, list and verify released students of Wan 2.1"),
    "pack": ("fewstep.apps.pack", "put trained networks of a bundled world together into a model folder"),
    "bench stream": ("fewstep.apps.bench_stream", "measure the speed of the live stream"),
    "bench serve": ("fewstep.apps.bench_serve", "measure the server under many viewers, on this machine"),
    "bench mesh": ("fewstep.apps.bench_mesh", "measure the speed of pictures to meshes, stage by stage"),
    "bench objectives": (
        "fewstep.apps.bench_objectives",
        "measure every objective on a teacher known exactly",
    ),
    "eval video": ("fewstep.apps.eval_video", "measure the quality of generated video"),
    "eval image": ("fewstep.apps.eval_image", "measure the quality of generated pictures"),
    "eval protein": (
        "fewstep.apps.eval_protein",
        "measure generated protein backbones: validity, diversity, novelty, speed",
    ),
    "eval mesh": ("fewstep.apps.eval_mesh", "measure the quality of meshes made of pictures"),
}
GROUPS = {"bench": "measure speed and objectives", "eval": "measure quality"}  # these take --json and --quick
TRAIN = "fewstep.apps.train"  # hands its arguments to LightningCLI, so run() takes them as they are
TRAIN_HELP = "train a model from a configuration file"

EXPECTED_ERRORS = (ValueError, OSError, ImportError)
USAGE_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    leave_out_chatter()
    try:
        if arguments[:1] == ["train"]:
            return importlib.import_module(TRAIN).run(arguments[1:])
        module, args = _parse(arguments)
        return module.run(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except EXPECTED_ERRORS as error:
        if os.environ.get("FEWSTEP_DEBUG") == "1":
            raise
        print(f"fewstep: error: {_one_line(error)}", file=sys.stderr)
        return USAGE_ERROR


def _parse(arguments: Sequence[str]) -> tuple[ModuleType, argparse.Namespace]:
    name = _chosen(arguments)
    parser = argparse.ArgumentParser(prog="fewstep", description="Few-step generative models, live.")
    parser.add_argument("--version", action="version", version=f"fewstep {__version__}")
    top = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    module = None
    groups: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {}
    for command, (path, summary) in COMMANDS.items():
        group, _, leaf = command.rpartition(" ")
        if group and group not in groups:
            group_parser = top.add_parser(group, help=GROUPS[group], description=GROUPS[group])
            groups[group] = group_parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        subparsers = groups[group] if group else top
        subparser = subparsers.add_parser(leaf, help=summary, description=summary)
        if command == name:
            module = importlib.import_module(path)
            module.add_arguments(subparser)
            if group:
                _add_measurement_arguments(subparser)
    top.add_parser("train", help=TRAIN_HELP, add_help=False)
    args = parser.parse_args(arguments)
    if module is None:
        parser.error("put the command first, right after fewstep")
    return module, args


def _chosen(arguments: Sequence[str]) -> str:
    """The command as a key of COMMANDS, or a string that is none."""
    if arguments and arguments[0] in GROUPS:
        return " ".join(arguments[:2])
    return arguments[0] if arguments else ""


def _add_measurement_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=writable, metavar="FILE", help="also write the records to FILE")
    parser.add_argument(
        "--quick", action="store_true", help="same definitions, fewer samples, under a minute"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
