"""Students of Wan 2.1's shapes with random weights, for measuring speed where nothing can be downloaded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.devices import usable_device
from fewstep.core.precision import fast_dtype
from fewstep.modalities.video.acceleration import Acceleration
from fewstep.modalities.video.parts import Parts
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.released.recipes import recipe
from fewstep.modalities.video.taehv import TAEHV, TAEHVConfig
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer
from fewstep.modalities.video.umt5 import TOKENS
from fewstep.modalities.video.wan_vae import WanVAE, WanVAEConfig

PIXELS_PER_TOKEN = 16  # both ways: a latent pixel is 8, a patch 2 of them


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the networks and of the frames, in pixels."""

    transformer: TransformerConfig
    vae: WanVAEConfig
    taehv: TAEHVConfig
    height: int
    width: int


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "wan2.1-1.3b": Shape(
            transformer=TransformerConfig(), vae=WanVAEConfig(), taehv=TAEHVConfig(), height=480, width=832
        ),
        "wan2.1-14b": Shape(
            transformer=TransformerConfig(dim=5120, ffn_dim=13824, num_layers=40, num_heads=40),
            vae=WanVAEConfig(),
            taehv=TAEHVConfig(),
            height=480,
            width=832,
        ),
    }
)
REDUCED = Shape(
    transformer=TransformerConfig(dim=256, ffn_dim=1024, num_layers=4, num_heads=2, text_dim=256),
    vae=WanVAEConfig(width=16),
    taehv=TAEHVConfig(widths=(64, 32, 16, 16), encoder_width=16),
    height=96,
    width=160,
)
"""For CPUs: the same code, heads and recipe, with less of everything."""


def shape_of(name: str, *, reduced: bool) -> Shape:
    """The shape of this name, or the one for CPUs."""
    if name not in SHAPES:
        raise ValueError(f"no random weights for {name!r}; there are {', '.join(SHAPES)}")
    return REDUCED if reduced else SHAPES[name]


def random_model(
    shape: Shape,
    *,
    recipe_name: str,
    light: bool,
    device: str,
    dtype: torch.dtype | None = None,
    acceleration: Acceleration = Acceleration(),  # noqa: B008 - frozen
) -> VideoModel:
    """A model of this shape that generates as the recipe says; ``light`` decodes with TAEHV. Its weights are
    drawn where and as they stay, so that memory never holds them twice.
    """
    place = usable_device(device)
    dtype = dtype or fast_dtype(place)
    torch.manual_seed(0)
    with place, _default_dtype(dtype):
        student = VideoTransformer(shape.transformer)
        nn.init.normal_(student.head.head.weight, std=shape.transformer.dim**-0.5)  # it begins at zero
        codec = TAEHV(shape.taehv) if light else WanVAE(shape.vae)
    card = recipe(recipe_name).card(recipe_name) | {"height": shape.height, "width": shape.width}
    parts = Parts(card=card | {"default_prompt": "noise"}, student=student, codec=codec)
    return VideoModel(Path(), device=device, dtype=dtype, parts=parts, acceleration=acceleration)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def random_features(shape: Shape) -> Float[Tensor, " text feature"]:
    """What stands for a prompt."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(TOKENS, shape.transformer.text_dim, generator=generator)


def chunk_flops(
    config: TransformerConfig, *, tokens: int, chunk: int, window: int, passes: int, text: int = TOKENS
) -> float:
    """Operations of the transformer for one chunk in the steady state, a product and a sum as two.

    Args:
        tokens: of a latent frame.
        chunk: latent frames.
        window: latent frames that a chunk sees, itself included.
        passes: denoising steps and the one into the cache.
    """
    queries, keys, dim = chunk * tokens, window * tokens, config.dim
    linear = 2 * queries * (6 * dim**2 + 2 * dim * config.ffn_dim)
    attention = 4 * queries * (keys + text) * dim
    patch = config.patch_size[0] * config.patch_size[1] * config.channels
    ends = 2 * 2 * queries * dim * patch
    return float(passes * (config.num_layers * (linear + attention) + ends))
