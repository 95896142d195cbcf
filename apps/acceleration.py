"""`--accelerate` and `--decoder-device`: how a command's video model runs, and where it decodes."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewstep.modalities.video.acceleration import Acceleration

ACCELERATE_HELP = "how the model runs: a name of bench stream's table of accelerations (%(default)s)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--accelerate", default="default", metavar="NAME", help=ACCELERATE_HELP)
    parser.add_argument("--decoder-device", help="device of the decoder, as cuda:1 (the model's)")


def chosen(name: str) -> "Acceleration":
    """The acceleration of this name, or a ValueError with those there are. Imports no torch."""
    from fewstep.modalities.video.acceleration import switched

    try:
        return switched(name)
    except ValueError as error:
        raise ValueError(f"--accelerate: {error}") from None


def check(name: str, device: str) -> None:
    """Refuse what this device cannot do. Only a CUDA device has to be looked at for that, with torch."""
    if reason := chosen(name).why_not(device):
        raise ValueError(f"--accelerate {name}: {reason}")
