"""A video model folder of the real classes, small enough to stream and score in a test."""

import hashlib
import json
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.modalities.video.captions import all_attributes, canonical_caption
from fewstep.modalities.video.codec import CodecConfig, VideoCodec
from fewstep.modalities.video.model_folder import save_codec, save_transformer
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer

WORDS, WIDTH, CHANNELS = 4, 8, 4
PIPELINE = {
    "name": "tiny",
    "fps": 12.0,
    "height": 96,
    "width": 96,
    "cache": {"window": 12, "chunk": 3, "sink": 3, "sink_mode": "ema", "decay": 0.9},
    "step_grids": {"1": [1.0], "2": [1.0, 0.6]},
    "default_steps": 2,
    "teacher": {"num_steps": 3, "guidance_scale": 2.5, "clip_frames": 12, "shift": 1.0},
}


class WordFeatures:
    """Random features for each word, in the text encoder's place."""

    def __call__(self, prompts: list[str]) -> Tensor:
        features = torch.zeros(len(prompts), WORDS, WIDTH)
        for row, prompt in zip(features, prompts, strict=True):
            for place, word in enumerate(["[CLS]", *prompt.split()][:WORDS]):
                key = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
                row[place] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(key))
        return features


def build(folder: Path) -> Path:
    """Write the folder: student, teacher, codec, prompts, pipeline."""
    sizes = TransformerConfig(
        dim=16, ffn_dim=32, num_layers=1, num_heads=2, channels=CHANNELS, freq_dim=8, text_dim=WIDTH
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for name in ("student", "teacher"):
            network = _randomised(VideoTransformer(sizes))
            grids = {1: [1.0], 2: [1.0, 0.6]} if name == "student" else None
            save_transformer(folder / name, network, training={}, metrics={}, step_grids=grids)
        codec = _randomised(VideoCodec(CodecConfig(channels=CHANNELS, width=4, depth=1)))
        save_codec(folder / "codec", codec, training={}, metrics={})
    captions = {
        f"{one.manoeuvre}|{one.speed}|{one.palette}": canonical_caption(one) for one in all_attributes()
    }
    texts = ["", *captions.values()]
    save_file(
        {text: row.clone() for text, row in zip(texts, WordFeatures()(texts), strict=True)},
        folder / "prompts.safetensors",
    )
    default = {"manoeuvre": "centre", "speed": "slow", "palette": "meadow"}
    steering = {"axes": [], "prompts": captions, "default": default}
    card = PIPELINE | {"default_prompt": captions["centre|slow|meadow"], "steering": steering}
    (folder / "pipeline.json").write_text(json.dumps(card))
    return folder


Network = TypeVar("Network", bound=nn.Module)


def _randomised(network: Network) -> Network:
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.add_(scale * torch.randn_like(parameter))
    return network
