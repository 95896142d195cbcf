from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from fewstep.modalities.shape3d.conditioning.dinov2 import LARGE, DinoTokens, from_original, load_dinov2

TINY = Dinov2WithRegistersConfig(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
)


@pytest.fixture
def model() -> Dinov2WithRegistersModel:
    model = Dinov2WithRegistersModel(TINY)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.2)
    return model.eval()


def original(model: Dinov2WithRegistersModel) -> dict[str, Tensor]:
    """The weights under the names that DINOv2's own code gives them."""
    state, out = model.state_dict(), {}
    for name in ("cls_token", "register_tokens", "mask_token"):
        out[name] = state[f"embeddings.{name}"]
    out["pos_embed"] = state["embeddings.position_embeddings"]
    for end in ("weight", "bias"):
        out[f"patch_embed.proj.{end}"] = state[f"embeddings.patch_embeddings.projection.{end}"]
        out[f"norm.{end}"] = state[f"layernorm.{end}"]
    attention = "attention" if "encoder.layer.0.attention.q_proj.bias" in state else "attention.attention"
    names = ["q_proj", "k_proj", "v_proj"] if attention == "attention" else ["query", "key", "value"]
    last = "attention.o_proj" if attention == "attention" else "attention.output.dense"
    for layer in range(TINY.num_hidden_layers):
        ours, theirs = f"encoder.layer.{layer}", f"blocks.{layer}"
        for end in ("weight", "bias"):
            qkv = torch.cat([state[f"{ours}.{attention}.{name}.{end}"] for name in names])
            out[f"{theirs}.attn.qkv.{end}"] = qkv
            out[f"{theirs}.attn.proj.{end}"] = state[f"{ours}.{last}.{end}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{theirs}.{part}.{end}"] = state[f"{ours}.{part}.{end}"]
        for number in (1, 2):
            out[f"{theirs}.ls{number}.gamma"] = state[f"{ours}.layer_scale{number}.lambda1"]
    return out


def test_tokens_are_the_last_layers_before_its_norm(model: Dinov2WithRegistersModel) -> None:
    pictures = torch.rand(2, 3, 28, 28)
    tokens = DinoTokens(model)(pictures)
    assert tokens.shape == (2, 1 + 4 + 4, 24)
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 9), atol=1e-5, rtol=0)
    with torch.no_grad():
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        pixels = (pictures - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        normed = model(pixel_values=pixels).last_hidden_state
        # the model's own norm has eps 1e-6 and an affine part, which both can be taken off again
        bare = (normed - model.layernorm.bias) / model.layernorm.weight
    torch.testing.assert_close(tokens, bare, atol=1e-3, rtol=1e-3)


def test_pictures_of_another_size_are_resized(model: Dinov2WithRegistersModel) -> None:
    encoder, picture = DinoTokens(model), torch.full((1, 3, 56, 40), 0.3)
    torch.testing.assert_close(
        encoder(picture), encoder(torch.full((1, 3, 28, 28), 0.3)), atol=1e-4, rtol=1e-4
    )


def test_both_formats_load_to_the_same_model(tmp_path: Path, model: Dinov2WithRegistersModel) -> None:
    model.save_pretrained(tmp_path / "folder")
    torch.save(original(model), tmp_path / "dinov2.pth")
    picture = torch.rand(1, 3, 28, 28)
    expected = DinoTokens(model)(picture)
    assert torch.equal(load_dinov2(tmp_path / "folder")(picture), expected)
    assert torch.equal(load_dinov2(tmp_path / "dinov2.pth", config=TINY)(picture), expected)


def test_a_weight_that_is_missing_is_named(tmp_path: Path, model: Dinov2WithRegistersModel) -> None:
    state = original(model)
    del state["register_tokens"]
    torch.save(state, tmp_path / "dinov2.pth")
    with pytest.raises(ValueError, match=r"missing: embeddings\.register_tokens"):
        load_dinov2(tmp_path / "dinov2.pth", config=TINY)
    with pytest.raises(FileNotFoundError, match="neither a folder"):
        load_dinov2(tmp_path / "other.pth")


def test_names_of_both_generations_of_transformers_are_known() -> None:
    state = {
        "blocks.3.attn.qkv.weight": torch.arange(6.0).view(6, 1),
        "blocks.3.attn.proj.bias": torch.ones(2),
    }
    earlier = from_original(state, {"encoder.layer.0.attention.attention.query.weight": torch.ones(1)})
    later = from_original(state, {"encoder.layer.0.attention.q_proj.weight": torch.ones(1)})
    assert earlier["encoder.layer.3.attention.attention.key.weight"].tolist() == [[2.0], [3.0]]
    assert later["encoder.layer.3.attention.k_proj.weight"].tolist() == [[2.0], [3.0]]
    assert "encoder.layer.3.attention.output.dense.bias" in earlier
    assert "encoder.layer.3.attention.o_proj.bias" in later


def test_the_released_size_has_1374_tokens_of_1024_channels() -> None:
    with torch.device("meta"):
        model = Dinov2WithRegistersModel(LARGE)
    positions = model.state_dict()["embeddings.position_embeddings"]
    assert tuple(positions.shape) == (1, 1370, 1024)  # and four registers, which have none
    assert LARGE.num_register_tokens == 4
    assert sum(parameter.numel() for parameter in model.parameters()) == 304_372_736
