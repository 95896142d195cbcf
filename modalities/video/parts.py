"""What a video model is made of, read from one of our model folders."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.modalities.video.codec import VideoCodec
from fewstep.modalities.video.model_folder import load_streaming_codec, load_transformer
from fewstep.modalities.video.pipeline_card import read_pipeline
from fewstep.modalities.video.taehv import TAEHV
from fewstep.modalities.video.text import TextEncoder
from fewstep.modalities.video.transformer import VideoTransformer
from fewstep.modalities.video.umt5 import UMT5Text
from fewstep.modalities.video.wan_vae import WanVAE

PROMPTS = "prompts.safetensors"
NEEDED = ("fps", "height", "width", "cache", "step_grids", "default_steps", "default_prompt")
TEXT_ENCODER, TOKENIZER = "text_encoder", "tokenizer"


@runtime_checkable
class Text(Protocol):
    """Prompts to token features."""

    def __call__(self, prompts: list[str]) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Networks and numbers of a video model, in the dtypes they were loaded in.

    Args:
        card: what ``pipeline.json`` says.
        known: prompts whose features need no text encoder.
    """

    card: Mapping[str, Any]
    student: VideoTransformer
    codec: VideoCodec | WanVAE | TAEHV
    text: Text = field(default_factory=TextEncoder)
    known: Mapping[str, Float[Tensor, " text feature"]] = field(default_factory=dict)


def read_parts(folder: Path) -> Parts:
    """Those of a folder with a ``pipeline.json``, ``student`` and ``codec``."""
    return Parts(
        card=read_card(folder),
        student=load_transformer(folder / "student", as_stored=True),
        codec=load_streaming_codec(folder / "codec", as_stored=True),
        text=read_text(folder),
        known=load_file(folder / PROMPTS) if (folder / PROMPTS).exists() else {},
    )


def read_card(folder: Path) -> dict[str, Any]:
    """What a video model's ``pipeline.json`` says; a ValueError where that is less than it needs."""
    return read_pipeline(folder, NEEDED)


def read_text(folder: Path) -> Text:
    """UMT5 where the folder has it, else the sentence encoder that a package ships."""
    if (folder / TEXT_ENCODER).is_dir():
        if not (folder / TOKENIZER).is_dir():
            raise FileNotFoundError(f"{folder} has no {TOKENIZER} for its {TEXT_ENCODER}; copy it there")
        return UMT5Text(folder / TEXT_ENCODER, folder / TOKENIZER)
    return TextEncoder()


def in_fastest_layout(codec: nn.Module) -> None:
    """Channels last in memory, for networks whose convolutions are all within frames."""
    if not any(parameter.ndim == 5 for parameter in codec.parameters()):
        # torch's types lack this overload
        codec.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
