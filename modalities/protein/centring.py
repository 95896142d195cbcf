"""Chains live where each one's centre is the origin; noise and predictions are brought there."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fewstep.core.denoisers import Denoiser, FeatureDenoiser
from fewstep.core.paths import Path
from fewstep.modalities.protein.denoisers import ChainCondition

Chains = Float[Tensor, " batch residue 3"]
Mask = Bool[Tensor, " batch residue"]
Generators = torch.Generator | Sequence[torch.Generator]
"""One of a whole batch, or one on the CPU for each chain, whose noise then depends on no other chain."""
Times = Float[Tensor, " batch"]


def centred(x: Chains, mask: Mask) -> Chains:
    """``x`` less each chain's centre, and 0 at padding, whatever finite values that held."""
    real = mask[..., None]
    x = torch.where(real, x, 0.0)
    return torch.where(real, x - x.sum(1, keepdim=True) / real.sum(1, keepdim=True), 0.0)


def centred_noise(mask: Mask, generator: Generators | None = None) -> Chains:
    """Standard Gaussian noise of the space of centred chains; residues come first in the rows of ``mask``."""
    if generator is None or isinstance(generator, torch.Generator):
        noise = torch.randn(*mask.shape, 3, generator=generator, device=mask.device)
        return centred(noise, mask)
    noise = torch.zeros(*mask.shape, 3)
    for row, own, size in zip(noise, generator, mask.sum(1).tolist(), strict=True):
        row[:size] = torch.randn(size, 3, generator=own)
    return centred(noise.to(mask.device), mask)


class CentredDenoiser(nn.Module):
    """A denoiser of chains of which neither ``x_t`` nor the estimate has a centre elsewhere.

    Objectives noise samples without knowing of the space that these live in. The part of their noise that
    moves whole chains is taken away here, and so is what a network predicts of it.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    @property
    def path(self) -> Path:
        return self.denoiser.path

    def forward(self, x_t: Chains, t: Times, condition: ChainCondition) -> Chains:
        return centred(self.denoiser(centred(x_t, condition.mask), t, condition), condition.mask)

    def features(
        self, x_t: Chains, t: Times, condition: ChainCondition
    ) -> Float[Tensor, " batch residue dim"]:
        """See ``FeatureDenoiser``."""
        if not isinstance(self.denoiser, FeatureDenoiser):
            raise ValueError(
                f"{type(self.denoiser).__name__} has no features(x_t, t, condition); "
                "write that method to train a discriminator on it"
            )
        return self.denoiser.features(centred(x_t, condition.mask), t, condition)
