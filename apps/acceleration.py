"""`--accelerate` and `--decoder-device`: how a command's video model runs, and where it decodes."""

import argparse
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewstep.core.attention_timing import Choice
    from fewstep.modalities.video.acceleration import Acceleration
    from fewstep.modalities.video.pipeline import VideoModel

log = logging.getLogger(__name__)

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


def choose_attention(model: "VideoModel") -> "Choice":
    """On a GPU, take the attention kernel that is the fastest for the model's stream."""
    from fewstep.modalities.video.attention_choice import choose_attention

    choice = choose_attention(model)
    if choice.milliseconds:
        times = ", ".join(f"{name} {each:.3f} ms" for name, each in choice.milliseconds.items())
        log.info("attention takes %s (%s)", choice.backend, times)
    return choice


def shown(choice: "Choice") -> str:
    """For the settings of a measurement."""
    return choice.backend or "by inputs"
