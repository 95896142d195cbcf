"""Proteina's transformer (Geffner et al., 2025): coordinates of CA atoms in, their velocity out.

Names and shapes of parameters are those of the released files, so that these load strictly.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.modalities.protein.networks.blocks import Block, Transition, attention_biases
from fewstep.modalities.protein.networks.embedding import FoldEmbedding, time_embedding
from fewstep.modalities.protein.networks.modulation import Conditions
from fewstep.modalities.protein.networks.pair_updates import PairUpdate
from fewstep.modalities.protein.networks.pairs import PairBuilder
from fewstep.modalities.protein.networks.sequence_features import (
    SEQUENCE_FEATURES,
    SequenceFeature,
    SequenceFeatures,
)

Coordinates = Float[Tensor, " batch residue 3"]
Mask = Bool[Tensor, " batch residue"]
Labels = Int[Tensor, " batch 3"]

CONDITION_EXPANSION = 2
REGISTER_STD = 1 / 20


class ProteinPrediction(NamedTuple):
    """What the network says of noised chains.

    Args:
        velocity: from noise to data, nanometre; zeros where there is no residue.
        distogram: logits of each pair's distance in the data; None for networks without pair updates.
    """

    velocity: Coordinates
    distogram: Float[Tensor, " batch row column bucket"] | None


@dataclass(frozen=True, kw_only=True)
class ProteinTransformerConfig:
    """Sizes; the defaults are Proteina's 200M model without triangles (v1.2).

    Args:
        registers: learned tokens beside those of residues.
        time_dim: of the embedded time.
        index_dim: of the embedded place in the chain.
        fold_dim: of the embedded class at each level of CATH.
        fold_classes: known classes, architectures and topologies; each table has one row more, for unknown.
        sequence_features: names in the order of their columns.
        separation_bins: of the distance along the chain, odd.
        self_condition_bins: of distances in the self-condition.
        distance_bins: of distances in the noised chain.
        pair_update_every: blocks from one pair update to the next; None for pairs that stay as they are.
        triangles: whether updates multiply over triangles.
        distogram_bins: of the head on updated pairs; None for no head.
    """

    token_dim: int = 768
    pair_dim: int = 512
    cond_dim: int = 512
    num_blocks: int = 15
    num_heads: int = 12
    registers: int = 10
    time_dim: int = 256
    index_dim: int = 128
    fold_dim: int = 256
    fold_classes: tuple[int, int, int] = (4, 43, 1336)
    sequence_features: tuple[SequenceFeature, ...] = ("res_seq_pdb_idx", "x_sc", "chain_break_per_res")
    separation_bins: int = 127
    self_condition_bins: int = 128
    distance_bins: int = 64
    qk_norm: bool = True
    pair_update_every: int | None = None
    triangles: bool = True
    distogram_bins: int | None = 64

    def __post_init__(self) -> None:
        if self.token_dim % self.num_heads:
            raise ValueError(
                f"token_dim={self.token_dim} must be a multiple of num_heads={self.num_heads}; change either"
            )
        if self.separation_bins % 2 == 0:
            raise ValueError(
                f"separation_bins={self.separation_bins} must be odd, with i - j = 0 in the middle"
            )
        unknown = [name for name in self.sequence_features if name not in SEQUENCE_FEATURES]
        if unknown or len(set(self.sequence_features)) != len(self.sequence_features):
            raise ValueError(
                f"sequence_features={self.sequence_features} must be some of {SEQUENCE_FEATURES}, each once"
            )

    def updates_pairs_after(self, block: int) -> bool:
        """Whether pairs change after this block; nothing would see them change after the last."""
        every = self.pair_update_every
        return every is not None and block % every == 0 and block < self.num_blocks - 1


class ConditionFeatures(nn.Module):
    """Proteina's ``cond_factory``: the time and the fold, once per sample."""

    def __init__(self, config: ProteinTransformerConfig) -> None:
        super().__init__()
        # the time has no weights, but a place in the names
        fold = FoldEmbedding(config.fold_classes, config.fold_dim)
        self.feat_creators = nn.ModuleList([nn.Identity(), fold])
        self.linear_out = nn.Linear(config.time_dim + 3 * config.fold_dim, config.cond_dim, bias=False)

    def forward(
        self, embedded: Float[Tensor, " batch time"], labels: Labels | None
    ) -> Float[Tensor, " batch condition"]:
        fold = self.feat_creators[1]
        assert isinstance(fold, FoldEmbedding)
        if labels is None:
            labels = fold.unknown(len(embedded), embedded.device)
        return self.linear_out(torch.cat([embedded, fold(labels)], 1))


class ProteinTransformer(nn.Module):
    """Velocity of noised chains in Proteina's own time: 0 is noise, 1 is data.

    Exact beside the published description, but not in its order of work: the condition is one row per
    sample, pair features are look-ups, and blocks that see the same pairs share one product for their biases.
    """

    def __init__(self, config: ProteinTransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim, pair_dim = config.token_dim, config.pair_dim
        self.registers = nn.Parameter(torch.randn(config.registers, dim) * REGISTER_STD)
        self.linear_3d_embed = nn.Linear(3, dim, bias=False)
        self.init_repr_factory = SequenceFeatures(config.sequence_features, config.index_dim, dim)
        self.cond_factory = ConditionFeatures(config)
        self.transition_c_1 = Transition(config.cond_dim, CONDITION_EXPANSION)
        self.transition_c_2 = Transition(config.cond_dim, CONDITION_EXPANSION)
        bins = (config.separation_bins, config.self_condition_bins, config.distance_bins)
        self.pair_repr_builder = PairBuilder(bins, pair_dim, config.cond_dim, config.time_dim)
        self.transformer_layers = nn.ModuleList(
            Block(dim, pair_dim, config.cond_dim, config.num_heads, qk_norm=config.qk_norm)
            for _ in range(config.num_blocks)
        )
        if config.pair_update_every is not None:
            self.pair_update_layers = nn.ModuleDict(
                {
                    str(block): PairUpdate(dim, pair_dim, triangles=config.triangles)
                    for block in range(config.num_blocks)
                    if config.updates_pairs_after(block)
                }
            )
        self.has_distogram = config.pair_update_every is not None and config.distogram_bins is not None
        if self.has_distogram:
            self.pair_head_prediction = nn.Sequential(
                nn.LayerNorm(pair_dim), nn.Linear(pair_dim, config.distogram_bins or 0)
            )
        self.coors_3d_decoder = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 3, bias=False))

    def forward(
        self,
        x_t: Coordinates,
        time: Float[Tensor, " batch"],
        mask: Mask,
        *,
        self_condition: Coordinates | None = None,
        labels: Labels | None = None,
    ) -> ProteinPrediction:
        """What the network says of noised chains.

        Args:
            x_t: nanometre, centred; what stands where there is no residue is not looked at.
            time: Proteina's.
            mask: True at residues.
            self_condition: an earlier estimate of the clean chain, nanometre.
            labels: class, architecture and topology, as rows of their tables; None for unknown.
        """
        tokens, pairs = self._through_blocks(x_t, time, mask, self_condition, labels)
        velocity = torch.where(mask[..., None], self.coors_3d_decoder(tokens), 0.0)
        return ProteinPrediction(velocity, self.pair_head_prediction(pairs) if self.has_distogram else None)

    def features(
        self,
        x_t: Coordinates,
        time: Float[Tensor, " batch"],
        mask: Mask,
        *,
        self_condition: Coordinates | None = None,
        labels: Labels | None = None,
    ) -> Float[Tensor, " batch residue dim"]:
        """Residues after the last block, for discriminators; zeros where there is none."""
        tokens = self._through_blocks(x_t, time, mask, self_condition, labels)[0]
        return torch.where(mask[..., None], tokens, 0.0)

    def unknown_labels(self, batch_size: int) -> Labels:
        """The labels that `labels=None` stands for."""
        fold = self.cond_factory.feat_creators[1]
        assert isinstance(fold, FoldEmbedding)
        return fold.unknown(batch_size, self.registers.device)

    def _through_blocks(
        self, x_t: Tensor, time: Tensor, mask: Mask, self_condition: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Residues and their pairs as the last block leaves them."""
        dtype = self.registers.dtype
        # geometry keeps the precision of the coordinates, whatever that of the weights
        x_t = torch.where(mask[..., None], x_t, 0.0)
        if self_condition is not None:
            self_condition = torch.where(mask[..., None], self_condition, 0.0)
        embedded = time_embedding(time, self.config.time_dim).to(dtype)
        tokens = self.linear_3d_embed(x_t.to(dtype)) + self.init_repr_factory(x_t, mask, self_condition)
        tokens = torch.cat([self.registers.to(tokens.dtype).expand(len(x_t), -1, -1), tokens], 1)
        pairs = self.pair_repr_builder(x_t, self_condition, embedded)
        tokens, pairs = self._trunk(tokens, pairs, self._conditions(embedded, labels, x_t.shape[1]), mask)
        return tokens[:, self.config.registers :], pairs

    def _conditions(self, embedded: Tensor, labels: Tensor | None, residues: int) -> Conditions:
        condition = self.transition_c_2(self.transition_c_1(self.cond_factory(embedded, labels)))
        return Conditions(F.pad(condition, (0, 0, 0, 1)), self.config.registers, residues)

    def _trunk(
        self, tokens: Tensor, pairs: Tensor, conditions: Conditions, mask: Mask
    ) -> tuple[Tensor, Tensor]:
        """Tokens, and pairs of residues, after all blocks."""
        registers = self.config.registers
        mask = F.pad(mask, (registers, 0), value=True)
        blocks = [block for block in self.transformer_layers if isinstance(block, Block)]
        if self.config.pair_update_every is None:
            for block, bias in zip(blocks, attention_biases(pairs, blocks, mask), strict=True):
                tokens = block(tokens, bias, conditions)
            return tokens, pairs
        pair_mask = (mask[:, None] & mask[:, :, None])[..., None]
        pairs = F.pad(pairs, (0, 0, registers, 0, registers, 0)) * pair_mask
        start = 0
        for stop in range(1, len(blocks) + 1):
            updated = self.config.updates_pairs_after(stop - 1)
            if not updated and stop < len(blocks):
                continue
            group = blocks[start:stop]
            for block, bias in zip(group, attention_biases(pairs, group, mask), strict=True):
                tokens = block(tokens, bias, conditions)
            if updated:
                pairs = self.pair_update_layers[str(stop - 1)](tokens, pairs, pair_mask)
            start = stop
        return tokens, pairs[:, registers:, registers:]
