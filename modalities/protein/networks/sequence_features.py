"""Features of each residue; they stand in the columns of one linear layer, in the order of their names."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.modalities.protein.networks.embedding import index_embedding

SequenceFeature = Literal["res_seq_pdb_idx", "x_sc", "chain_break_per_res", "ca_local_diff", "ca_chirality"]
SEQUENCE_FEATURES: tuple[SequenceFeature, ...] = get_args(SequenceFeature)

Coordinates = Float[Tensor, " batch residue 3"]
Mask = Bool[Tensor, " batch residue"]

NEIGHBOURS = (-2, -1, 1, 2)
TRIPLES = ((-1, 1, 2), (-2, -1, 1))
CHIRAL_GAIN = 30.0  # per cubic nanometre: a helix's triple products are about 0.04
SMALLEST_VOLUME = 1e-6  # cubic nanometre; below it a triple product has no sign worth telling


class SequenceFeatures(nn.Module):
    """The linear layer of Proteina's ``init_repr_factory``.

    ``x_sc`` is the self-condition. ``ca_local_diff`` (24 columns) and ``ca_chirality`` (8) are ours, for
    networks too small to find a chain's handedness in its coordinates; released models lack them.
    """

    def __init__(self, names: Sequence[SequenceFeature], index_dim: int, token_dim: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.index_dim = index_dim
        columns = sum(feature_columns(name, index_dim) for name in names)
        self.linear_out = nn.Linear(columns, token_dim, bias=False)

    def forward(
        self, x_t: Coordinates, mask: Mask, self_condition: Coordinates | None
    ) -> Float[Tensor, " batch residue dim"]:
        told = torch.zeros_like(x_t) if self_condition is None else self_condition
        features = torch.cat([self._feature(name, x_t, mask, told) for name in self.names], -1)
        return self.linear_out(features.to(self.linear_out.weight.dtype))

    def _feature(self, name: SequenceFeature, x_t: Tensor, mask: Tensor, told: Tensor) -> Tensor:
        if name == "res_seq_pdb_idx":
            places = index_embedding(x_t.shape[1], self.index_dim, x_t.device).to(x_t.dtype)
            return places.expand(len(x_t), *places.shape)
        if name == "x_sc":
            return told
        if name == "chain_break_per_res":
            return torch.zeros_like(x_t[..., :1])
        feature = local_differences if name == "ca_local_diff" else chirality
        return torch.cat([feature(x_t, mask), feature(told, mask)], -1)


def feature_columns(name: SequenceFeature, index_dim: int) -> int:
    """Columns of the linear layer that belong to a feature."""
    return {
        "res_seq_pdb_idx": index_dim,
        "x_sc": 3,
        "chain_break_per_res": 1,
        "ca_local_diff": 2 * 3 * len(NEIGHBOURS),
        "ca_chirality": 2 * 2 * len(TRIPLES),
    }[name]


def difference(x: Coordinates, mask: Mask, offset: int) -> tuple[Coordinates, Mask]:
    """The way to the residue ``offset`` places on, and whether there is one; zeros where there is none."""
    n = x.shape[1]
    ends = (-offset, 0) if offset < 0 else (0, offset)
    start = max(offset, 0)
    shifted = F.pad(x, (0, 0, *ends))[:, start : start + n]
    exists = F.pad(mask, ends)[:, start : start + n] & mask
    return torch.where(exists[..., None], shifted - x, 0.0), exists


def local_differences(x: Coordinates, mask: Mask) -> Float[Tensor, " batch residue 12"]:
    """Ways to the two residues before and the two after, nanometre."""
    return torch.cat([difference(x, mask, offset)[0] for offset in NEIGHBOURS], -1)


def chirality(x: Coordinates, mask: Mask) -> Float[Tensor, " batch residue 4"]:
    """Triple products of ways to neighbours: of unit vectors, and as they are but squashed.

    They change sign under reflection, which distances cannot tell.
    """
    columns: list[Tensor] = []
    for triple in TRIPLES:
        ways, exists = zip(*(difference(x, mask, offset) for offset in triple), strict=True)
        a, b, c = ways
        volume = (torch.linalg.cross(a, b) * c).sum(-1)
        lengths = torch.stack([torch.linalg.vector_norm(way, dim=-1) for way in ways]).prod(0)
        there = exists[0] & exists[1] & exists[2]
        columns.append(torch.where(there, volume / (lengths + SMALLEST_VOLUME), 0.0))
        columns.append(torch.where(there, torch.tanh(CHIRAL_GAIN * volume), 0.0))
    return torch.stack(columns, -1)
