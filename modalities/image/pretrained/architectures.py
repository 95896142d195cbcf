"""How each family of diffusers pipelines calls its network; `ARCHITECTURES` lists them all."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

PACK = 2  # FLUX and Qwen-Image see 2x2 latents as one token
DEFAULT_EMBEDDED_GUIDANCE = 3.5  # of diffusers' FluxPipeline

Conditions = dict[str, Tensor]
Latents = Float[Tensor, " batch channels height width"]


@dataclass(frozen=True)
class Architecture(ABC):
    """One family: its sub-folders, what its text encoders return, and the call of its network.

    Args:
        pixels_per_latent: by how much the autoencoder shrinks each side.
        embedded_guidance: for networks that were distilled to take w as an input (FLUX.1-dev).
    """

    pixels_per_latent: int
    embedded_guidance: float = DEFAULT_EMBEDDED_GUIDANCE

    network: ClassVar[str] = "transformer"
    text: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder")
    places: ClassVar[dict[str, tuple[int, int | None]]]  # see PromptEncoder
    null_prompt: ClassVar[str] = ""
    grid_from_one: ClassVar[bool] = False  # see NoiseSchedule.times
    keeps_norm: ClassVar[bool] = False  # guidance restores the norm of the conditional velocity, per token

    @abstractmethod
    def predict(self, network: Any, x_t: Latents, timestep: Tensor, condition: Conditions) -> Latents:
        """The network's prediction for latents at its own timesteps [B]."""

    @abstractmethod
    def blocks(self, network: Any) -> list[nn.Module]:
        """The network's blocks in the order of the computation, as points to take features from."""

    def patch(self, network: Any) -> int:
        """Latents per side of a token."""
        return network.config.patch_size

    def latent_channels(self, network: Any) -> int:
        return network.config.in_channels

    def check(self, network: Any, latent_channels: int) -> None:
        """ValueError for a network of the right class that is no teacher of text to image."""
        if self.latent_channels(network) != latent_channels:
            raise ValueError(
                f"the {self.network} takes {self.latent_channels(network)} channels, the autoencoder has "
                f"{latent_channels}; networks for inpainting or editing are not supported"
            )

    def feature_map(self, network: Any, output: Any, x_t: Latents) -> Float[Tensor, " batch d h w"]:
        """A block's output as a map; of a block with two streams, that of the image."""
        tokens = output[-1] if isinstance(output, tuple) else output
        rows, columns = (side // self.patch(network) for side in x_t.shape[-2:])
        return tokens[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))


@dataclass(frozen=True)
class StableDiffusion(Architecture):
    """Stable Diffusion 1.x and 2.x: a UNet that attends to CLIP's tokens."""

    network: ClassVar[str] = "unet"
    places: ClassVar[dict[str, tuple[int, int | None]]] = {"text": (0, 1)}

    def predict(self, network: Any, x_t: Latents, timestep: Tensor, condition: Conditions) -> Latents:
        return network(x_t, timestep, encoder_hidden_states=condition["text"], return_dict=False)[0]

    def blocks(self, network: Any) -> list[nn.Module]:
        return [*network.down_blocks, network.mid_block, *network.up_blocks]

    def patch(self, network: Any) -> int:
        return 1

    def check(self, network: Any, latent_channels: int) -> None:
        super().check(network, latent_channels)
        if network.config.time_cond_proj_dim is not None:
            raise ValueError("the unet takes an embedding of w: it is a distilled student, not a teacher")

    def feature_map(self, network: Any, output: Any, x_t: Latents) -> Float[Tensor, " batch d h w"]:
        return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True)
class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL: two CLIPs, and the pooled text and the image's size in the time embedding.

    The size is that of ``x_t`` in pixels, uncropped, as in the pipeline's defaults.
    """

    text: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    places: ClassVar[dict[str, tuple[int, int | None]]] = {"text": (0, 1), "pooled": (2, 3)}

    def predict(self, network: Any, x_t: Latents, timestep: Tensor, condition: Conditions) -> Latents:
        height, width = (side * self.pixels_per_latent for side in x_t.shape[-2:])
        uncropped = timestep.new_tensor([height, width, 0, 0, height, width]).expand(len(x_t), -1)
        return network(
            x_t,
            timestep,
            encoder_hidden_states=condition["text"],
            added_cond_kwargs={"text_embeds": condition["pooled"], "time_ids": uncropped},
            return_dict=False,
        )[0]


@dataclass(frozen=True)
class PixArt(Architecture):
    """PixArt-alpha and -Sigma: a transformer that attends to T5's tokens; a learned variance is dropped."""

    places: ClassVar[dict[str, tuple[int, int | None]]] = {"text": (0, 2), "mask": (1, 3)}

    def predict(self, network: Any, x_t: Latents, timestep: Tensor, condition: Conditions) -> Latents:
        size: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if network.use_additional_conditions:
            height, width = (side * self.pixels_per_latent for side in x_t.shape[-2:])
            size["resolution"] = timestep.new_tensor([height, width]).expand(len(x_t), -1)
            size["aspect_ratio"] = timestep.new_tensor([height / width]).expand(len(x_t), -1)
        prediction = network(
            x_t,
            encoder_hidden_states=condition["text"],
            encoder_attention_mask=condition["mask"],
            timestep=timestep,
            added_cond_kwargs=size,
            return_dict=False,
        )[0]
        return prediction[:, : x_t.shape[1]]

    def blocks(self, network: Any) -> list[nn.Module]:
        return list(network.transformer_blocks)


@dataclass(frozen=True)
class StableDiffusion3(Architecture):
    """Stable Diffusion 3 and 3.5: two CLIPs and T5 beside the image's tokens, pooled CLIP in the time."""

    text: ClassVar[tuple[str, ...]] = (
        *("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"),
        *("tokenizer_3", "text_encoder_3"),
    )
    places: ClassVar[dict[str, tuple[int, int | None]]] = {"text": (0, 1), "pooled": (2, 3)}

    def predict(self, network: Any, x_t: Latents, timestep: Tensor, condition: Conditions) -> Latents:
        return network(
            hidden_states=x_t,
            timestep=timestep,
            encoder_hidden_states=condition["text"],
            pooled_projections=condition["pooled"],
            return_dict=False,
        )[0]

    def blocks(self, network: Any) -> list[nn.Module]:
        return list(network.transformer_blocks)


@dataclass(frozen=True)
class Flux(Architecture):
    """FLUX.1: T5 beside packed image tokens, pooled CLIP and, in the dev model, w in the time."""

    text: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    places: ClassVar[dict[str, tuple[int, int | None]]] = {"text": (0, None), "pooled": (1, None)}
    grid_from_one: ClassVar[bool] = True

    def predict(self, network: Any, x_t: Latents, timestep: Tensor, condition: Conditions) -> Latents:
        rows, columns = (side // PACK for side in x_t.shape[-2:])
        image_ids = timestep.new_zeros(rows, columns, 3)
        image_ids[..., 1] = torch.arange(rows, device=x_t.device)[:, None]
        image_ids[..., 2] = torch.arange(columns, device=x_t.device)
        guidance = timestep.new_full((len(x_t),), self.embedded_guidance)
        tokens = network(
            hidden_states=pack(x_t),
            timestep=timestep / 1000,
            guidance=guidance if network.config.guidance_embeds else None,
            pooled_projections=condition["pooled"],
            encoder_hidden_states=condition["text"],
            txt_ids=timestep.new_zeros(condition["text"].shape[1], 3),
            img_ids=image_ids.flatten(0, 1),
            return_dict=False,
        )[0]
        return unpack(tokens, x_t.shape[-2], x_t.shape[-1])

    def blocks(self, network: Any) -> list[nn.Module]:
        return [*network.transformer_blocks, *network.single_transformer_blocks]

    def patch(self, network: Any) -> int:
        return PACK

    def latent_channels(self, network: Any) -> int:
        return network.config.in_channels // PACK**2


@dataclass(frozen=True)
class Sana(Architecture):
    """SANA: linear attention over latents of a 32 times compressing autoencoder, text from Gemma 2."""

    places: ClassVar[dict[str, tuple[int, int | None]]] = {"text": (0, 2), "mask": (1, 3)}

    def predict(self, network: Any, x_t: Latents, timestep: Tensor, condition: Conditions) -> Latents:
        return network(
            x_t,
            encoder_hidden_states=condition["text"],
            encoder_attention_mask=condition["mask"],
            timestep=timestep * network.config.timestep_scale,
            return_dict=False,
        )[0][:, : x_t.shape[1]]

    def blocks(self, network: Any) -> list[nn.Module]:
        return list(network.transformer_blocks)


@dataclass(frozen=True)
class QwenImage(Architecture):
    """Qwen-Image: Qwen2.5-VL's tokens beside packed image tokens."""

    places: ClassVar[dict[str, tuple[int, int | None]]] = {"text": (0, None), "mask": (1, None)}
    null_prompt: ClassVar[str] = " "  # as in the model's card
    grid_from_one: ClassVar[bool] = True
    keeps_norm: ClassVar[bool] = True

    def predict(self, network: Any, x_t: Latents, timestep: Tensor, condition: Conditions) -> Latents:
        rows, columns = (side // PACK for side in x_t.shape[-2:])
        tokens = network(
            hidden_states=pack(x_t),
            timestep=timestep / 1000,
            encoder_hidden_states=condition["text"],
            encoder_hidden_states_mask=condition["mask"],
            img_shapes=[[(1, rows, columns)]] * len(x_t),
            return_dict=False,
        )[0]
        return unpack(tokens, x_t.shape[-2], x_t.shape[-1])

    def blocks(self, network: Any) -> list[nn.Module]:
        return list(network.transformer_blocks)

    def patch(self, network: Any) -> int:
        return PACK

    def latent_channels(self, network: Any) -> int:
        return network.config.in_channels // PACK**2


ARCHITECTURES: dict[str, type[Architecture]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "PixArtAlphaPipeline": PixArt,
    "PixArtSigmaPipeline": PixArt,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "SanaPipeline": Sana,
    "QwenImagePipeline": QwenImage,
}
"""The pipeline class that a ``model_index.json`` names -> how its network is called."""


def pack(x: Latents) -> Float[Tensor, " batch tokens features"]:
    """2x2 latents as one token, in rows; features are ordered channel, row, column."""
    batch, channels, height, width = x.shape
    cells = x.reshape(batch, channels, height // PACK, PACK, width // PACK, PACK)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Float[Tensor, " batch tokens features"], height: int, width: int) -> Latents:
    """The latents of ``pack``'s tokens."""
    cells = tokens.unflatten(2, (-1, PACK, PACK)).unflatten(1, (height // PACK, width // PACK))
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
