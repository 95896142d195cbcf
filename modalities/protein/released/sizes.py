"""A network's configuration out of a checkpoint: as its authors wrote it down, or from its shapes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fewstep.modalities.protein.networks.pairs import FARTHEST, NEAREST
from fewstep.modalities.protein.networks.sequence_features import SEQUENCE_FEATURES, SequenceFeature
from fewstep.modalities.protein.networks.transformer import ProteinTransformerConfig

State = Mapping[str, Tensor]

FIXED: Mapping[str, Any] = {
    "residual_mha": True,
    "residual_transition": True,
    "parallel_mha_transition": False,
    "use_attn_pair_bias": True,
    "feats_cond_seq": ["time_emb", "fold_emb"],
    "feats_pair_repr": ["rel_seq_sep", "x_sc_pair_dists", "xt_pair_dists"],
    "feats_pair_cond": ["time_emb"],
    "xt_pair_dist_min": NEAREST,
    "xt_pair_dist_max": FARTHEST,
    "x_sc_pair_dist_min": NEAREST,
    "x_sc_pair_dist_max": FARTHEST,
}  # what all released models without motifs have, and our network does not vary
NAMES: Mapping[str, str] = {
    "token_dim": "token_dim",
    "pair_repr_dim": "pair_dim",
    "dim_cond": "cond_dim",
    "nlayers": "num_blocks",
    "nheads": "num_heads",
    "num_registers": "registers",
    "t_emb_dim": "time_dim",
    "idx_emb_dim": "index_dim",
    "fold_emb_dim": "fold_dim",
    "seq_sep_dim": "separation_bins",
    "x_sc_pair_dist_dim": "self_condition_bins",
    "xt_pair_dist_dim": "distance_bins",
    "use_qkln": "qk_norm",
}
RELEASED_BINS = (127, 128, 64)
SMALL_DIM = 512  # of the 60M models' tokens
SMALL_FEATURES: tuple[SequenceFeature, ...] = ("res_seq_pdb_idx", "chain_break_per_res", "x_sc")
LARGE_FEATURES: tuple[SequenceFeature, ...] = ("res_seq_pdb_idx", "x_sc", "chain_break_per_res")
COORDINATE_COLUMNS = 4  # of x_sc and chain breaks

INPUT = "init_repr_factory.linear_out.weight"
FOLD = "cond_factory.feat_creators.1.embedding_{}.weight"
PAIRS = "pair_repr_builder.init_repr_factory.linear_out.weight"
PAIR_TIME = "pair_repr_builder.cond_factory.linear_out.weight"
BIAS = "transformer_layers.0.mhba.mha.to_bias.weight"
Q_NORM = "transformer_layers.0.mhba.mha.q_layer_norm.weight"
UPDATES = "pair_update_layers."
DISTOGRAM = "pair_head_prediction.1.weight"


def written_config(record: Mapping[str, Any], state: State, where: str) -> ProteinTransformerConfig:
    """From ``model.nn`` of the configuration that a Lightning checkpoint holds.

    Raises:
        ValueError: a value is missing, or is that of a network which this one is not.
    """
    foreign = {name: record[name] for name, value in FIXED.items() if record.get(name, value) != value}
    unknown = [name for name in record.get("feats_init_seq", ()) if name not in SEQUENCE_FEATURES]
    if unknown:
        foreign["feats_init_seq"] = unknown
    if foreign:
        raise ValueError(f"{where}: {foreign} is not supported; motif-scaffolding models are not, others are")
    missing = sorted({*NAMES, "feats_init_seq"} - set(record))
    if missing:
        raise ValueError(f"{where}: its configuration lacks {', '.join(missing)}")
    updates = bool(record.get("update_pair_repr"))
    every = record.get("update_pair_repr_every_n", 2) if updates else None
    return ProteinTransformerConfig(
        **{ours: record[theirs] for theirs, ours in NAMES.items()},
        fold_classes=_fold_classes(state, where),
        sequence_features=tuple(record["feats_init_seq"]),
        pair_update_every=every,
        triangles=bool(record.get("use_tri_mult")),
        distogram_bins=record.get("num_buckets_predict_pair"),
    )


def config_from_shapes(
    state: State, where: str, sequence_features: tuple[SequenceFeature, ...] | None = None
) -> ProteinTransformerConfig:
    """For files of weights alone, with what released models have where shapes do not tell.

    Args:
        sequence_features: their order, which no shape tells; None for that of the released model of this
            width: chain breaks stand before the self-condition in the 60M models, after it in the others.
    """
    try:
        registers, token_dim = state["registers"].shape
        columns, bins = state[INPUT].shape[1], state[PAIRS].shape[1]
        cond_dim = state["cond_factory.linear_out.weight"].shape[0]
        pair_dim, num_heads = state[PAIRS].shape[0], state[BIAS].shape[0]
        time_dim, fold_dim = state[PAIR_TIME].shape[1], state[FOLD.format("C")].shape[1]
    except KeyError as error:
        raise ValueError(f"{where} is not Proteina's transformer: {error} is missing") from error
    if bins != sum(RELEASED_BINS):
        raise ValueError(
            f"{where}: {bins} bins of pairs are not the released {RELEASED_BINS}, and no file says"
        )
    updated = sorted({int(name.split(".")[1]) for name in state if name.startswith(UPDATES)})
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("transformer_layers."))
    every = (updated[1] - updated[0] if len(updated) > 1 else blocks) if updated else None
    return ProteinTransformerConfig(
        token_dim=token_dim,
        pair_dim=pair_dim,
        cond_dim=cond_dim,
        num_blocks=blocks,
        num_heads=num_heads,
        registers=registers,
        time_dim=time_dim,
        index_dim=columns - COORDINATE_COLUMNS,
        fold_dim=fold_dim,
        fold_classes=_fold_classes(state, where),
        sequence_features=sequence_features or (SMALL_FEATURES if token_dim == SMALL_DIM else LARGE_FEATURES),
        qk_norm=Q_NORM in state,
        pair_update_every=every,
        triangles=any(".tri_mult_out." in name for name in state),
        distogram_bins=state[DISTOGRAM].shape[0] if DISTOGRAM in state else None,
    )


def _fold_classes(state: State, where: str) -> tuple[int, int, int]:
    """Rows of each level's table, but for the last, which is for unknown classes."""
    names = [FOLD.format(level) for level in ("C", "A", "T")]
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"{where} does not fit the network; missing: {', '.join(missing)}")
    c, a, t = (len(state[name]) - 1 for name in names)
    return c, a, t
