"""At real size, without memory: our classes and key maps against those of diffusers and transformers."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.modalities.video.released.key_maps import AUTOENCODER, TEXT_ENCODER, TRANSFORMER, KeyMap
from fewstep.modalities.video.taehv import TAEHV, TAEHVConfig
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer
from fewstep.modalities.video.umt5 import EMBEDDINGS, TIED
from fewstep.modalities.video.wan_vae import WanVAE, WanVAEConfig

LARGE: dict[str, Any] = {"dim": 5120, "ffn_dim": 13824, "num_layers": 40, "num_heads": 40}


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def theirs(**sizes: Any) -> nn.Module:
    module = pytest.importorskip("diffusers.models.transformers.transformer_wan")
    return on_meta(lambda: module.WanTransformer3DModel(**sizes))


@pytest.mark.parametrize(
    ("ours", "other", "keys", "parameters"),
    [
        (
            {},
            {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
            825,
            1_418_996_800,
        ),
        (LARGE, {}, 1095, 14_288_491_584),
    ],
    ids=["1.3B", "14B"],
)
def test_the_transformer_is_diffusers_by_name_and_shape(
    ours: dict[str, Any], other: dict[str, Any], keys: int, parameters: int
) -> None:
    network = on_meta(lambda: VideoTransformer(TransformerConfig(**ours)))
    state = network.state_dict()
    assert shapes(TRANSFORMER.renamed_to_other(state, "ours")) == shapes(theirs(**other).state_dict())
    assert len(state) == keys
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_the_autoencoder_is_diffusers_by_name_and_shape() -> None:
    module = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")
    network = on_meta(lambda: WanVAE(WanVAEConfig()))
    other: Any = on_meta(module.AutoencoderKLWan)
    state = network.state_dict()
    found, expected = shapes(AUTOENCODER.renamed_to_other(state, "ours")), shapes(other.state_dict())
    assert found == expected
    assert (len(state), sum(p.numel() for p in network.parameters())) == (194, 126_892_531)
    assert list(WanVAEConfig.mean) == other.config.latents_mean
    assert list(WanVAEConfig.std) == other.config.latents_std


def test_taehv_has_the_tensors_of_its_file() -> None:
    network = on_meta(lambda: TAEHV(TAEHVConfig()))
    state = shapes(network.state_dict())
    assert (len(state), sum(p.numel() for p in network.parameters())) == (128, 11_315_539)
    assert state["decoder.13.conv.weight"] == (256, 128, 1, 1)
    assert state["decoder.3.conv.0.weight"] == (256, 512, 3, 3)
    assert state["encoder.2.conv.weight"] == (64, 128, 1, 1)
    assert state["encoder.17.weight"] == (16, 64, 3, 3)
    assert state["decoder.22.weight"] == (3, 64, 3, 3)


def wan_umt5(dim: int, inner: int, feed_forward: int, heads: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of Wan's file, written out."""
    sizes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (256384, dim), "norm.weight": (dim,)}
    for layer in range(layers):
        block = f"blocks.{layer}"
        sizes |= {f"{block}.norm1.weight": (dim,), f"{block}.norm2.weight": (dim,)}
        sizes |= {f"{block}.attn.{part}.weight": (inner, dim) for part in "qkv"}
        sizes[f"{block}.attn.o.weight"] = (dim, inner)
        sizes[f"{block}.pos_embedding.embedding.weight"] = (32, heads)
        sizes |= {f"{block}.ffn.{part}.weight": (feed_forward, dim) for part in ("gate.0", "fc1")}
        sizes[f"{block}.ffn.fc2.weight"] = (dim, feed_forward)
    return sizes


def test_umt5_xxl_is_transformers_by_name_and_shape() -> None:
    from transformers import UMT5EncoderModel

    from fewstep.modalities.video.umt5 import wan_config

    file = wan_umt5(4096, 4096, 10240, 64, 24)
    model = on_meta(lambda: UMT5EncoderModel(wan_config(file)))
    expected = shapes(model.state_dict())
    renamed = {theirs: file[wan] for wan, theirs in TEXT_ENCODER.to_other(file, "file").items()}
    assert {**renamed, TIED: renamed[EMBEDDINGS]} == expected
    assert len(file) == 242
    assert sum(p.numel() for p in model.parameters()) == 5_680_910_336


@pytest.mark.parametrize(
    ("key_map", "names"),
    [
        (TRANSFORMER, lambda: on_meta(lambda: VideoTransformer(TransformerConfig())).state_dict()),
        (AUTOENCODER, lambda: on_meta(lambda: WanVAE(WanVAEConfig())).state_dict()),
        (TEXT_ENCODER, lambda: wan_umt5(8, 8, 8, 2, 12)),
    ],
    ids=["transformer", "autoencoder", "text encoder"],
)
def test_there_and_back_every_name_is_the_same(key_map: KeyMap, names: Callable[[], Any]) -> None:
    forth = key_map.to_other(names(), "here")
    back = key_map.to_wan(forth.values(), "there")
    assert len(set(forth.values())) == len(forth)
    assert {back[theirs]: theirs for theirs in forth.values()} == forth


def test_names_of_another_network_are_listed() -> None:
    names = ["blocks.0.self_attn.q.weight", "blocks.0.self_attn.z.weight", "img_emb.proj.0.weight"]
    with pytest.raises(ValueError, match=r"f: not a name in Wan's layout: blocks.0.self_attn.z.weight, img_"):
        TRANSFORMER.to_other(names, "f")
    with pytest.raises(ValueError, match=r"not a name in diffusers's layout: blocks\.0\.attn1\.to_q\.scale"):
        TRANSFORMER.to_wan(["blocks.0.attn1.to_q.scale"], "f")
