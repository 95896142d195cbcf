"""DINOv2 with registers (Oquab et al., 2023; Darcet et al., 2023) as TRELLIS looks at pictures through it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from fewstep.core.checkpoints import check_names_and_shapes
from fewstep.modalities.shape3d.networks.blocks import FINAL_EPS, plain_norm
from fewstep.modalities.video.released.weight_files import read_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
LARGE = Dinov2WithRegistersConfig(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518, patch_size=14
)  # dinov2_vitl14_reg

ORIGINAL_NAMES = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "norm.": "layernorm.",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
EARLIER_PROJECTIONS = ("attention.query", "attention.key", "attention.value", "output.dense")


class DinoTokens(nn.Module):
    """Pictures to the tokens of the last layer: the class token, the registers, the patches.

    They are normalised without the model's own last norm and without parameters; zeros stand for no picture.

    Args:
        model: of transformers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Dinov2WithRegistersModel) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    @property
    def image_size(self) -> int:
        """Pixels along an edge, at which positions need no interpolation."""
        size: Any = self.model.config.image_size
        return int(size)

    @torch.no_grad()
    def forward(self, pictures: Float[Tensor, " batch 3 height width"]) -> Float[Tensor, " batch token dim"]:
        """Tokens of pictures in 0 to 1 on black, of any size; see `centred_on_black`."""
        size = (self.image_size, self.image_size)
        if pictures.shape[-2:] != size:
            pictures = F.interpolate(pictures, size, mode="bicubic", antialias=True).clamp(0, 1)
        hidden = self.model.embeddings((pictures - self.mean) / self.std)
        return plain_norm(self.model.encoder(hidden).last_hidden_state, FINAL_EPS)


def load_dinov2(path: str | Path, *, config: Dinov2WithRegistersConfig = LARGE) -> DinoTokens:
    """The encoder from a transformers folder, or from a `.pth` file with DINOv2's own names.

    Args:
        path: the folder or the file.
        config: sizes of the model in a `.pth` file, which does not say them.

    Raises:
        ValueError: weights are missing or do not fit.
    """
    path = Path(path)
    if path.is_dir():
        loaded: Any = Dinov2WithRegistersModel.from_pretrained(
            path, local_files_only=True, output_loading_info=True
        )
        model, report = loaded
        wrong = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
        if wrong:
            raise ValueError(f"{path} does not fit {type(model).__name__}: {', '.join(wrong)}")
        return DinoTokens(model)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is neither a folder of transformers nor a .pth file of DINOv2")
    with torch.device("meta"):
        model = Dinov2WithRegistersModel(config)
    state = from_original(read_weights(path), model.state_dict())
    check_names_and_shapes(model.state_dict(), state, str(path))
    model.load_state_dict(state, assign=True)
    return DinoTokens(model)


def from_original(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's own names to those of transformers, whose attention has a layer each for q, k and v.

    Args:
        expected: names of the model to load into; transformers has renamed its attention's layers once.
    """
    earlier = any(".attention.attention.query." in name for name in expected)
    projections = EARLIER_PROJECTIONS if earlier else PROJECTIONS
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        new = re.sub(r"^blocks\.(\d+)\.", r"encoder.layer.\1.", name)
        if "attn.qkv." in new:
            for projection, part in zip(projections, value.chunk(3), strict=False):
                renamed[new.replace("attn.qkv", f"attention.{projection}")] = part
            continue
        new = new.replace("attn.proj.", f"attention.{projections[3]}.")
        for theirs, ours in ORIGINAL_NAMES.items():
            if new.startswith(theirs) or (theirs.startswith("ls") and new.endswith(theirs)):
                new = new.replace(theirs, ours)
                break
        renamed[new] = value
    return renamed
