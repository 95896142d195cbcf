"""A pretrained autoencoder: pixels in [-1, 1] to latents of about unit variance, and back."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def pixels_per_latent(config: dict[str, Any]) -> int:
    """By how much an autoencoder of this ``config.json`` shrinks each side of an image."""
    match config["_class_name"]:
        case "AutoencoderKL":
            return 2 ** (len(config["block_out_channels"]) - 1)
        case "AutoencoderDC":
            return 2 ** (len(config["encoder_block_out_channels"]) - 1)
        case "AutoencoderKLQwenImage":
            return 2 ** len(config["temperal_downsample"])
        case name:
            raise ValueError(
                f"autoencoder {name} is not supported; supported are AutoencoderKL, AutoencoderDC, "
                "AutoencoderKLQwenImage"
            )


def latent_channels(config: dict[str, Any]) -> int:
    """Channels of the latents of an autoencoder of this ``config.json``."""
    return config["z_dim"] if "z_dim" in config else config["latent_channels"]


class LatentCodec:
    """A frozen autoencoder of diffusers; gradients pass through both directions.

    Latents are ``(z - mean) / std``, with the scaling and shift factors, or the per-channel statistics,
    that the autoencoder's configuration holds.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.is_video = type(vae).__name__ == "AutoencoderKLQwenImage"
        config = vae.config
        scale = config.get("scaling_factor") or 1.0
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            mean, std = [config.get("shift_factor") or 0.0], [1.0]
        self._mean = torch.tensor(mean).view(1, -1, 1, 1)
        self._std = (torch.tensor(std) / scale).view(1, -1, 1, 1)

    def to(self, device: torch.device) -> "LatentCodec":
        """Moves the autoencoder, and returns the same codec."""
        self.vae.to(device)
        return self

    def encode(self, pixels: Float[Tensor, " batch 3 height width"]) -> Float[Tensor, " batch c h w"]:
        """Latents of images in [-1, 1]; where the autoencoder gives a distribution, its mode."""
        images = pixels.to(self.vae.dtype)
        encoded = self.vae.encode(images[:, :, None] if self.is_video else images)
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        if self.is_video:
            z = z[:, :, 0]
        mean, std = self._statistics(z)
        return ((z.float() - mean) / std).to(pixels.dtype)

    def decode(self, latents: Float[Tensor, " batch c h w"]) -> Float[Tensor, " batch 3 height width"]:
        """Images in [-1, 1]; what the autoencoder puts outside is clamped."""
        mean, std = self._statistics(latents)
        z = (latents.float() * std + mean).to(self.vae.dtype)
        images = self.vae.decode(z[:, :, None] if self.is_video else z, return_dict=False)[0]
        return (images[:, :, 0] if self.is_video else images).clamp(-1, 1).to(latents.dtype)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self._mean.to(like.device), self._std.to(like.device)
