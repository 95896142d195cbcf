from pathlib import Path

import pytest
import torch

from fewstep.modalities.shape3d.conditioning.clip_text import load_clip_text


@pytest.fixture
def folder(clip_folder: Path) -> Path:
    return clip_folder


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
