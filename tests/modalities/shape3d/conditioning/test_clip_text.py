import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fewstep.modalities.shape3d.conditioning.clip_text import load_clip_text

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A text model of CLIP's class with a vocabulary of letters."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    CLIPTextModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_every_text_has_as_many_tokens(folder: Path) -> None:
    encoder = load_clip_text(folder)
    tokens = encoder(["a b", "c", "a " * 40])
    assert tokens.shape == (3, 12, 16)
    assert not torch.equal(tokens[0], tokens[1])
    torch.testing.assert_close(encoder(["c"])[0], tokens[1])


def test_no_text_is_an_empty_one(folder: Path) -> None:
    encoder = load_clip_text(folder)
    assert torch.equal(encoder.null(2)[1], encoder([""])[0])
    assert encoder.null(2).any()  # and not zeros


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no folder; give one with CLIP"):
        load_clip_text(tmp_path / "other")
