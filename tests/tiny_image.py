"""An image model folder of the real classes, small enough to sample and score in a test."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.core.checkpoints import Guidance
from fewstep.modalities.image.classifier import AttributeClassifier, ClassifierConfig, save_classifier
from fewstep.modalities.image.codec import ImageCodec, ImageCodecConfig
from fewstep.modalities.image.files import write_shard
from fewstep.modalities.image.model_folder import save_codec, save_transformer
from fewstep.modalities.image.network import ImageTransformer
from fewstep.modalities.objects.captions import Attributes, full_caption, heldout_captions, train_captions
from fewstep.modalities.objects.scene import draw_attributes
from fewstep.modalities.objects.surfaces import BACKGROUNDS_SRGB, COLOURS_SRGB
from fewstep.modalities.video.transformer import TransformerConfig

WORDS, WIDTH, CHANNELS = 4, 8, 4
GRIDS = {1: [1.0], 2: [1.0, 0.6]}
ROLLOUTS = {"dmd2": "fresh", "tdm": "ddim", "split_mean_flow": "flow_map"}
SIZES = TransformerConfig(
    dim=16,
    ffn_dim=32,
    num_layers=1,
    num_heads=2,
    channels=CHANNELS,
    freq_dim=8,
    text_dim=WIDTH,
    patch_size=(2, 2),
)
PIPELINE = {
    "name": "tiny",
    "height": 64,
    "width": 64,
    "students": {name: {"rollout": rollout} for name, rollout in ROLLOUTS.items()},
    "default_student": "dmd2",
    "default_steps": 2,
    "default_prompt": "a blue mug",
    "example_prompts": ["a blue mug"],
    "teacher": {"num_steps": 3, "guidance_scale": 2.5, "shift": 1.0},
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


Network = TypeVar("Network", bound=nn.Module)


def randomised(network: Network) -> Network:
    """No weight at its initial 0 or 1: a term that starts switched off would go untested."""
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.add_(scale * torch.randn_like(parameter))
    return network


def save_networks(
    folder: Path, *, students: str = "students", training: dict[str, dict] | None = None
) -> None:
    """The model folders `codec`, `teacher`, `classifier` and the students'."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        codec = randomised(ImageCodec(ImageCodecConfig(channels=CHANNELS, width=4, depth=1)))
        save_codec(folder / "codec", codec, training={}, metrics={})
        save_transformer(folder / "teacher", randomised(ImageTransformer(SIZES)), training={}, metrics={})
        for name, rollout in ROLLOUTS.items():
            sizes = replace(SIZES, two_times=rollout == "flow_map")
            save_transformer(
                folder / students / name,
                randomised(ImageTransformer(sizes)),
                training=(training or {}).get(name, {}),
                metrics={},
                step_grids=GRIDS,
                guidance=Guidance(scale=2.5, baked=True),
            )
        classifier = AttributeClassifier(ClassifierConfig(width=2, features=4))
        save_classifier(folder / "classifier", classifier, training={}, metrics={})


def build(folder: Path) -> Path:
    """Write the folder: students, teacher, codec, classifier, prompts, pipeline."""
    save_networks(folder)
    texts = ["", "a blue mug"]
    features = {text: row.clone() for text, row in zip(texts, WordFeatures()(texts), strict=True)}
    save_file(features, folder / "prompts.safetensors")
    (folder / "pipeline.json").write_text(json.dumps(PIPELINE))
    return folder


def picture_of(attributes: Attributes, random: np.random.Generator) -> np.ndarray:
    """A square in the object's colour before the backdrop, with grain."""
    picture = np.empty((64, 64, 3), np.float64)
    picture[:] = BACKGROUNDS_SRGB[attributes.background]
    picture[16:48, 16:48] = COLOURS_SRGB[attributes.colour]
    return (picture + random.normal(0, 2, picture.shape)).clip(0, 255).astype(np.uint8)


def write_pictures(root: Path, counts: dict[str, int]) -> Path:
    """Captioned pictures in `root/SPLIT`, as `fewstep render --world objects` lays them out."""
    for number, (split, count) in enumerate(counts.items()):
        rng, random = np.random.default_rng(number), Random(number)
        entries = []
        for index in range(count):
            attributes = draw_attributes(rng, heldout=split == "heldout")
            record = {
                "captions": train_captions(attributes, random),
                "heldout_captions": heldout_captions(attributes, random),
                "full_caption": full_caption(attributes),
                "attributes": attributes.as_dict(),
            }
            entries.append((f"{split}-{index:04d}", picture_of(attributes, rng), record))
        write_shard(root / split / "all.tar", entries)
    return root
