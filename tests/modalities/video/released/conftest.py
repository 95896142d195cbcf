"""Tiny folders of random weights in the layouts of Wan and of diffusers, of the real classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.modalities.video.released.key_maps import AUTOENCODER, TEXT_ENCODER, TRANSFORMER
from fewstep.modalities.video.taehv import TAEHV, TAEHVConfig
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer
from fewstep.modalities.video.wan_vae import WanVAE, WanVAEConfig

HEADS, TEXT_DIM = 2, 32
TRANSFORMER_SIZES: dict[str, Any] = {
    "dim": 24,
    "ffn_dim": 48,
    "num_layers": 2,
    "num_heads": HEADS,
    "channels": 16,
    "freq_dim": 16,
    "text_dim": TEXT_DIM,
}
WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "fox", "blue", "bird", "runs"]


def randomised(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@pytest.fixture(scope="session")
def transformer() -> VideoTransformer:
    network = randomised(VideoTransformer(TransformerConfig(**TRANSFORMER_SIZES)), 0)
    assert isinstance(network, VideoTransformer)
    return network


@pytest.fixture(scope="session")
def vae() -> WanVAE:
    network = randomised(WanVAE(WanVAEConfig(width=4)), 1)
    assert isinstance(network, WanVAE)
    return network


@pytest.fixture(scope="session")
def taehv() -> TAEHV:
    config = TAEHVConfig(widths=(8, 8, 8, 8), encoder_width=8)
    network = randomised(TAEHV(config), 2)
    assert isinstance(network, TAEHV)
    return network


@pytest.fixture(scope="session")
def umt5() -> Any:
    """transformers' own class."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=len(WORDS), d_model=TEXT_DIM, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return UMT5EncoderModel(config).eval()


def save_tokenizer(folder: Path) -> None:
    """Words and what they are numbered, ending each text as T5's does."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    inner.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def wan_folder(
    tmp_path_factory: pytest.TempPathFactory, transformer: VideoTransformer, vae: WanVAE, umt5: Any
) -> Path:
    """As Wan released it: transformer, autoencoder, UMT5 and tokenizer in one folder."""
    folder = tmp_path_factory.mktemp("Wan2.1-T2V-tiny")
    save_file(transformer.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    sizes = {"dim": 24, "ffn_dim": 48, "freq_dim": 16, "in_dim": 16, "num_heads": HEADS, "num_layers": 2}
    record = {"_class_name": "WanModel", "eps": 1e-6, "model_type": "t2v", "out_dim": 16, **sizes}
    (folder / "config.json").write_text(json.dumps(record))
    torch.save(vae.state_dict(), folder / "Wan2.1_VAE.pth")
    text = {name: value for name, value in umt5.state_dict().items() if "embed_tokens" not in name}
    torch.save(TEXT_ENCODER.renamed_to_wan(text, "text"), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    save_tokenizer(folder / "google" / "umt5-xxl")
    return folder


@pytest.fixture(scope="session")
def diffusers_folder(
    tmp_path_factory: pytest.TempPathFactory, transformer: VideoTransformer, vae: WanVAE, umt5: Any
) -> Path:
    """The same networks as diffusers saves them, the transformer in two files."""
    folder = tmp_path_factory.mktemp("Wan2.1-T2V-tiny-Diffusers")
    renamed = TRANSFORMER.renamed_to_other(transformer.state_dict(), "ours")
    parts = {"00001": dict(list(renamed.items())[:20]), "00002": dict(list(renamed.items())[20:])}
    (folder / "transformer").mkdir()
    places = {}
    for number, part in parts.items():
        file = f"diffusion_pytorch_model-{number}-of-00002.safetensors"
        save_file(part, folder / "transformer" / file)
        places |= dict.fromkeys(part, file)
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    record = {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": HEADS,
        "attention_head_dim": 12,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": TEXT_DIM,
        "freq_dim": 16,
        "ffn_dim": 48,
        "num_layers": 2,
        "eps": 1e-6,
        "rope_max_seq_len": 64,
    }
    (folder / "transformer" / "config.json").write_text(json.dumps(record))
    (folder / "vae").mkdir()
    save_file(
        AUTOENCODER.renamed_to_other(vae.state_dict(), "ours"),
        folder / "vae" / "diffusion_pytorch_model.safetensors",
    )
    (folder / "vae" / "config.json").write_text(json.dumps({"base_dim": 4, "attn_scales": []}))
    umt5.save_pretrained(folder / "text_encoder")
    save_tokenizer(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    return folder


@pytest.fixture
def assert_same_state() -> Callable[[nn.Module, nn.Module], None]:
    def check(found: nn.Module, expected: nn.Module) -> None:
        a: dict[str, Tensor] = {name: value.float() for name, value in found.state_dict().items()}
        b: dict[str, Tensor] = {name: value.float() for name, value in expected.state_dict().items()}
        torch.testing.assert_close(a, b, atol=0.0, rtol=0.0)

    return check
