"""Layers whose scale and shift follow the condition."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Tokens = Float[Tensor, " batch token dim"]

SCALE_BIAS = -2.0  # of the gate on a block's output, at the start


@dataclass(frozen=True, eq=False)
class Conditions:
    """What the tokens of a batch are conditioned on: the same for all residues of a chain.

    Args:
        rows: one per sample, and a last one for all registers.
        registers: tokens before those of the residues.
        residues: tokens of residues.
    """

    rows: Float[Tensor, " row condition"]
    registers: int
    residues: int

    def spread(self, values: Float[Tensor, " row dim"]) -> Float[Tensor, " batch token dim"]:
        """What was computed from the rows, at the tokens that they belong to."""
        batch, dim = len(values) - 1, values.shape[1]
        registers = values[-1].expand(batch, self.registers, dim)
        return torch.cat([registers, values[:-1, None].expand(batch, self.residues, dim)], 1)


class AdaptiveNorm(nn.Module):
    r"""Proteina's adaptive layer norm: :math:`\mathrm{LN}(x)\,\sigma(W_\gamma \bar c + b) + W_\beta \bar c`,
    where :math:`\bar c` is the condition after a layer norm of its own."""

    def __init__(self, dim: int, cond_dim: int) -> None:
        super().__init__()
        self.norm_cond = nn.LayerNorm(cond_dim)
        self.to_gamma = nn.Sequential(nn.Linear(cond_dim, dim), nn.Sigmoid())
        self.to_beta = nn.Linear(cond_dim, dim, bias=False)

    def gain_and_shift(
        self, condition: Float[Tensor, " row condition"]
    ) -> tuple[Float[Tensor, " row dim"], Float[Tensor, " row dim"]]:
        normed = self.norm_cond(condition)
        return self.to_gamma(normed), self.to_beta(normed)

    def forward(self, x: Tokens, conditions: Conditions) -> Tokens:
        gain, shift = self.gain_and_shift(conditions.rows)
        normed = F.layer_norm(x, x.shape[-1:])
        return torch.addcmul(conditions.spread(shift), normed, conditions.spread(gain))


class OutputScale(nn.Module):
    """A gate in (0, 1) on what a block adds; nearly closed and blind to the condition at the start."""

    def __init__(self, dim: int, cond_dim: int) -> None:
        super().__init__()
        layer = nn.Linear(cond_dim, dim)
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, SCALE_BIAS)
        self.to_adaln_zero_gamma = nn.Sequential(layer, nn.Sigmoid())

    def forward(self, x: Tokens, conditions: Conditions) -> Tokens:
        return x * conditions.spread(self.to_adaln_zero_gamma(conditions.rows))
