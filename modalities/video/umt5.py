"""UMT5-xxl, the text encoder of Wan 2.1 (Chung et al., 2023), through transformers."""

import html
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.modalities.video.released.key_maps import TEXT_ENCODER
from fewstep.modalities.video.released.weight_files import read_state

TOKENS = 512  # that Wan's transformer attends to, padding included
WAN_SIGN = "token_embedding.weight"
EMBEDDINGS, TIED = "shared.weight", "encoder.embed_tokens.weight"


class UMT5Text:
    """Token features as Wan wants them, zeros after each prompt's end; loaded on first use.

    Args:
        encoder: a folder of transformers, or Wan's `models_t5_umt5-xxl-enc-bf16.pth`.
        tokenizer: a folder of transformers.
        dtype: None is the file's own.
    """

    def __init__(self, encoder: Path, tokenizer: Path, *, dtype: torch.dtype | None = None) -> None:
        self._encoder, self._tokenizer, self._dtype = encoder, tokenizer, dtype

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """Tokenizer and encoder. It stays on the CPU: its 11 GB are asked for once per prompt."""
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        tokenizer = AutoTokenizer.from_pretrained(self._tokenizer, local_files_only=True)
        if self._encoder.is_dir():
            from transformers import UMT5EncoderModel

            dtype = self._dtype or "auto"
            model = UMT5EncoderModel.from_pretrained(self._encoder, dtype=dtype, local_files_only=True)
        else:
            model = load_wan_file(self._encoder, dtype=self._dtype)
        return tokenizer, model.eval()

    @torch.inference_mode()
    def __call__(self, prompts: list[str]) -> Float[Tensor, " prompt text feature"]:
        """Features ``[prompts, 512, 4096]``; what is longer than 512 tokens is cut."""
        features = self.without_padding(prompts)
        return torch.nn.functional.pad(features, (0, 0, 0, TOKENS - features.shape[1]))

    @torch.inference_mode()
    def without_padding(self, prompts: list[str]) -> Float[Tensor, " prompt text feature"]:
        """The same, only as long as the longest prompt: padding is masked, so the rest is as it would be."""
        tokenizer, model = self.parts
        batch = tokenizer(
            [cleaned(prompt) for prompt in prompts],
            padding="longest",
            max_length=TOKENS,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        mask = batch["attention_mask"]
        hidden = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        return hidden.float() * mask[..., None]


def cleaned(prompt: str) -> str:
    """Character references resolved and white space collapsed, as Wan's tokenizer does it."""
    return " ".join(html.unescape(html.unescape(prompt)).split())


def load_wan_file(path: Path, *, dtype: torch.dtype | None = None) -> Any:
    """transformers' ``UMT5EncoderModel`` with the weights of Wan's own file, strictly by name and shape."""
    from transformers import UMT5EncoderModel

    from fewstep.core.checkpoints import check_names_and_shapes

    state = read_state(path)
    if WAN_SIGN not in state:
        raise ValueError(f"{path} is not Wan's file of UMT5: {WAN_SIGN} is missing")
    config = wan_config({name: tuple(value.shape) for name, value in state.items()})
    state = TEXT_ENCODER.renamed_to_other(state, str(path))
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    state[TIED] = state[EMBEDDINGS]
    check_names_and_shapes(model.state_dict(), state, str(path))
    wanted = dtype or state[EMBEDDINGS].dtype
    model.load_state_dict({name: value.to(wanted) for name, value in state.items()}, assign=True)
    model.tie_weights()
    return model


def wan_config(shapes: dict[str, tuple[int, ...]]) -> Any:
    """The configuration of transformers that tensors of Wan's file have, by their shapes."""
    from transformers import UMT5Config

    vocabulary, dim = shapes[WAN_SIGN]
    inner = shapes["blocks.0.attn.q.weight"][0]
    buckets, heads = shapes["blocks.0.pos_embedding.embedding.weight"]
    return UMT5Config(
        vocab_size=vocabulary,
        d_model=dim,
        d_kv=inner // heads,
        d_ff=shapes["blocks.0.ffn.fc1.weight"][0],
        num_layers=len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
    )
