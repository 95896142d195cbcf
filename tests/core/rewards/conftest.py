"""Tiny random models of the real classes, in the real folder layouts, built offline."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    PretrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.utils import logging

STRUCTURE = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PREPROCESSOR = {  # with the names that the released folders use
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SPARE_ROWS = 5  # the released embeddings have more rows than their tokenizers have tokens
REWARD_TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
TEMPLATE = (
    "\nRate the looks: <|VQ_reward|>\nRate the motion: <|MQ_reward|>\n"
    "It should show {text_prompt}\nRate that: <|TA_reward|>\n"
)
LORA_RANK, LORA_ALPHA = 2, 6


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity_warning()
    logging.enable_progress_bar()


def save_tokenizer(folder: Path) -> Qwen2Tokenizer:
    vocabulary = {letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}
    for word in ("Ye", "Yes", "No"):
        vocabulary[word] = len(vocabulary)
    merges: Any = [("Y", "e"), ("Ye", "s"), ("N", "o")]
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_tokens(list(STRUCTURE), special_tokens=True)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(str(folder))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return tokenizer


def text_config(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        "bos_token_id": None,
        "eos_token_id": None,
    }


def token_ids(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    names = ("vision_start", "vision_end", "image", "video")
    tokens = STRUCTURE[3:]
    return {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in zip(names, tokens, strict=True)
    }


def enliven(network: torch.nn.Module) -> None:
    """Larger weights than at initialisation, so that what a tiny model sees moves what it says."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and "embed_tokens" not in name:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.5 / fan_in) ** 0.5)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            elif "embed_tokens" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = save_tokenizer(folder)
    config = Qwen2_5_VLConfig(
        text_config=text_config(len(tokenizer) + SPARE_ROWS),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        **token_ids(tokenizer),
    )
    network = Qwen2_5_VLForConditionalGeneration(config)
    enliven(network)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def qwen2_vl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2-VL as `save_pretrained` writes it, with as many embeddings as VideoAlign's base."""
    folder = tmp_path_factory.mktemp("qwen2-vl")
    tokenizer = save_tokenizer(folder)
    config = Qwen2VLConfig(
        text_config=text_config(len(tokenizer) + SPARE_ROWS),
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
        **token_ids(tokenizer),
    )
    network = Qwen2VLForConditionalGeneration(config)
    enliven(network)
    network.save_pretrained(folder)
    return folder


class ReleasedFiles:
    """What a released VideoAlign folder holds, to be changed by a test and written."""

    template = TEMPLATE

    def __init__(self, base: Path) -> None:
        self.base = base
        self.weights = released_weights(base)
        self.config = released_config(base)

    def write(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "model_config.json").write_text(json.dumps(self.config))
        (folder / "prompt_template.txt").write_text(self.template)
        (folder / "checkpoint-20").mkdir()
        torch.save(self.weights, folder / "checkpoint-20" / "model.pth")
        return folder


def released_weights(base: Path) -> dict[str, Tensor]:
    """A state dict with the names of the released model.pth: an old Qwen2-VL inside a LoRA wrapper."""
    generator = torch.Generator().manual_seed(1)
    network = Qwen2VLForConditionalGeneration.from_pretrained(str(base))
    rows = len(Qwen2Tokenizer.from_pretrained(str(base))) + len(REWARD_TOKENS)
    network.resize_token_embeddings(rows, mean_resizing=False)
    weights: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        layer, _, kind = name.rpartition(".")
        adapted = name.startswith("model.layers.") and layer.endswith("_proj")
        if adapted and kind == "weight":
            size = value.shape
            for part, shape in (("A", (LORA_RANK, size[1])), ("B", (size[0], LORA_RANK))):
                key = f"base_model.model.{layer}.lora_{part}.default.weight"
                weights[key] = 0.2 * torch.randn(shape, generator=generator)
        name = f"{layer}.base_layer.{kind}" if adapted else name
        weights[f"base_model.model.{name}"] = value.clone()
    weights["base_model.model.rm_head.weight"] = torch.randn(1, 32, generator=generator)
    return weights


def released_config(base: Path) -> dict[str, dict[str, Any]]:
    """The released model_config.json, as far as it is known, for tiny frames."""
    return {
        "data_config": {
            "meta_data": "somewhere.csv",
            "fps": 2.0,
            "num_frames": None,
            "max_frame_pixels": 56 * 84,
            "prompt_template_type": "detailed_special",
            "eval_dim": ["VQ", "MQ", "TA"],
        },
        "training_args": {"learning_rate": 2e-6},
        "model_config": {
            "model_name_or_path": str(base),
            "output_dim": 1,
            "use_special_tokens": True,
            "reward_token": "special",
        },
        "peft_lora_config": {
            "lora_enable": True,
            "lora_r": LORA_RANK,
            "lora_alpha": LORA_ALPHA,
            "use_rslora": False,
        },
        "inference_config": {
            "VQ_mean": 3.0,
            "VQ_std": 2.0,
            "MQ_mean": 1.0,
            "MQ_std": 1.5,
            "TA_mean": -2.0,
            "TA_std": 0.5,
        },
    }


@pytest.fixture
def released(qwen2_vl_folder: Path) -> ReleasedFiles:
    return ReleasedFiles(qwen2_vl_folder)


@pytest.fixture(scope="session")
def video_align_folder(qwen2_vl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VideoAlign reward in its released layout."""
    return ReleasedFiles(qwen2_vl_folder).write(tmp_path_factory.mktemp("video-align"))


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of another family."""
    folder = tmp_path_factory.mktemp("other")
    PretrainedConfig().save_pretrained(folder)
    record = json.loads((folder / "config.json").read_text()) | {"model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(record))
    return folder
