"""Proteina's network behind the house's denoiser contract, and guidance around it.

Inside the house t = 0 is data and a velocity leads from data to noise; Proteina has both the other way
round. They are turned here and nowhere else. Chains are in nanometre.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fewstep.core.denoisers import Denoiser, NetworkDenoiser
from fewstep.core.layouts import Masked
from fewstep.core.paths import Path
from fewstep.modalities.protein.networks.transformer import ProteinTransformer

Chains = Float[Tensor, " batch residue 3"]
Times = Float[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class ChainCondition:
    """What a network is given beside noised chains.

    Args:
        mask: True at residues.
        self_condition: an earlier estimate of the clean chains, nanometre.
        labels: class, architecture and topology; None for an unknown fold.
    """

    mask: Bool[Tensor, " batch residue"]
    self_condition: Chains | None = None
    labels: Int[Tensor, " batch 3"] | None = None

    @property
    def layout(self) -> Masked:
        """How residues lie in the rows."""
        return Masked(self.mask)

    def without_labels(self) -> "ChainCondition":
        """The same chains with their folds unknown."""
        return replace(self, labels=None)

    def with_self_condition(self, x0: Chains | None) -> "ChainCondition":
        """The same chains with this earlier estimate; no gradient flows through it."""
        return replace(self, self_condition=None if x0 is None else x0.detach())


class ChainNetwork(nn.Module):
    """A ``ProteinTransformer`` as a network of the house: time and velocity turned round."""

    def __init__(self, transformer: ProteinTransformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x_t: Chains, t: Times, condition: ChainCondition) -> Chains:
        told, labels = condition.self_condition, condition.labels
        return -self.transformer(x_t, 1 - t, condition.mask, self_condition=told, labels=labels).velocity

    def features(
        self, x_t: Chains, t: Times, condition: ChainCondition
    ) -> Float[Tensor, " batch residue dim"]:
        """See ``FeatureDenoiser``."""
        told, labels = condition.self_condition, condition.labels
        return self.transformer.features(x_t, 1 - t, condition.mask, self_condition=told, labels=labels)


def chain_denoiser(transformer: ProteinTransformer) -> NetworkDenoiser:
    """Proteina's network as a denoiser of centred chains on the linear path.

    Where there is no residue, the network's velocity is zero and x_t comes back as it is.
    """
    return NetworkDenoiser(ChainNetwork(transformer))


class GuidedChains(nn.Module):
    r"""Guidance away from what the fold's label does not say, and from what a worse network says.

    .. math:: \hat x_0 = w\,\hat x_0^{label}
        + (1 - w) \left[ a\,\hat x_0^{worse} + (1 - a)\,\hat x_0^{\varnothing} \right]

    Classifier-free guidance is a = 0; autoguidance (Karras et al., 2024) is a = 1, and needs no label. All
    estimates are given the same self-condition. Each costs one forward pass.

    Args:
        denoiser: of chains.
        guidance_scale: w; 1 is off and calls ``denoiser`` only.
        worse: for autoguidance, the same network earlier in its training; called with labels.
        autoguidance_share: a.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        guidance_scale: float,
        worse: Denoiser | None = None,
        autoguidance_share: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= autoguidance_share <= 1:
            raise ValueError(f"autoguidance_share={autoguidance_share} must be between 0 and 1")
        if (worse is None) != (autoguidance_share == 0):
            raise ValueError(
                f"autoguidance_share={autoguidance_share} and worse={type(worse).__name__} do not fit; "
                "give a network and a share above 0, or neither"
            )
        self.denoiser = denoiser
        self.worse = worse
        self.guidance_scale = guidance_scale
        self.autoguidance_share = autoguidance_share

    @property
    def path(self) -> Path:
        return self.denoiser.path

    def forward(self, x_t: Chains, t: Times, condition: ChainCondition) -> Chains:
        w, share = self.guidance_scale, self.autoguidance_share
        x0 = self.denoiser(x_t, t, condition)
        if w == 1:
            return x0
        if condition.labels is None and share < 1:
            raise ValueError(
                f"guidance_scale={w} guides towards a fold, but the condition has no labels; "
                "give labels, a guidance_scale of 1, or autoguidance alone (autoguidance_share=1)"
            )
        # extrapolation amplifies rounding, so it is never done in half precision
        precise = torch.promote_types(x0.dtype, torch.float32)
        guided = w * x0.to(precise)
        if self.worse is not None:
            guided = guided + (1 - w) * share * self.worse(x_t, t, condition).to(precise)
        if share < 1:
            null = self.denoiser(x_t, t, condition.without_labels())
            guided = guided + (1 - w) * (1 - share) * null.to(precise)
        return guided.to(x0.dtype)
