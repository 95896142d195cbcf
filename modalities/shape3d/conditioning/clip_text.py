"""CLIP's text model (Radford et al., 2021) as TRELLIS reads texts through it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer


class ClipTokens(nn.Module):
    """Texts to the tokens of the last layer, always as many; those of an empty text stand for no text.

    Args:
        model: of transformers.
        tokenizer: the model's.
    """

    def __init__(self, model: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @property
    def length(self) -> int:
        """Tokens of a text, padding included; longer ones are cut off."""
        return int(self.model.config.max_position_embeddings)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Float[Tensor, " batch token dim"]:
        """Padding is attended to, without a mask, as TRELLIS does."""
        tokens = self.tokenizer(
            list(texts), max_length=self.length, padding="max_length", truncation=True, return_tensors="pt"
        )
        return self.model(input_ids=tokens["input_ids"].to(self.model.device)).last_hidden_state

    def null(self, batch_size: int) -> Float[Tensor, " batch token dim"]:
        """Tokens of no text."""
        return self([""]).expand(batch_size, -1, -1)


def load_clip_text(folder: str | Path) -> ClipTokens:
    """Model and tokenizer from a transformers folder such as that of openai/clip-vit-large-patch14.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: weights are missing.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give one with CLIP's text model and its tokenizer")
    loaded: Any = CLIPTextModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    model, report = loaded
    if report["missing_keys"]:
        raise ValueError(f"{folder} lacks {', '.join(sorted(report['missing_keys']))} of CLIP's text model")
    return ClipTokens(model, CLIPTokenizer.from_pretrained(folder, local_files_only=True))
