"""Proteina's network behind the house's denoiser contract, and guidance around it.

Inside the house t = 0 is data and a velocity leads from data to noise; Proteina has both the other way
round. They are turned here and nowhere else. Chains are in nanometre.
"""

from dataclasses import dataclass, replace

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fewstep.core.denoisers import NetworkDenoiser
from fewstep.core.layouts import Masked
from fewstep.modalities.protein.networks.transformer import ProteinTransformer

Chains = Float[Tensor, " batch residue 3"]


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
    """A ``ProteinTransformer`` as a network of the house: times and velocities turned, other outputs left."""

    def __init__(self, transformer: ProteinTransformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x_t: Chains, t: Float[Tensor, " batch"], condition: ChainCondition) -> Chains:
        prediction = self.transformer(
            x_t,
            1 - t,
            condition.mask,
            self_condition=condition.self_condition,
            labels=condition.labels,
        )
        return -prediction.velocity


def chain_denoiser(transformer: ProteinTransformer) -> NetworkDenoiser:
    """Proteina's network as a denoiser of centred chains on the linear path."""
    return NetworkDenoiser(ChainNetwork(transformer))
