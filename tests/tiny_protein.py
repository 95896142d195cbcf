"""A protein model folder of the real classes, small enough to sample from in a test."""

from pathlib import Path

import torch

from fewstep.modalities.protein.model_folder import save_transformer
from fewstep.modalities.protein.networks.transformer import ProteinTransformer, ProteinTransformerConfig
from fewstep.modalities.protein.packing import pack_chains
from fewstep.modalities.protein.sampling import ChainSampling
from fewstep.modalities.protein.times import student_grid

SIZES = ProteinTransformerConfig(
    token_dim=16,
    pair_dim=8,
    cond_dim=8,
    num_blocks=1,
    num_heads=2,
    registers=2,
    time_dim=8,
    index_dim=8,
    fold_dim=4,
    fold_classes=(3, 0, 0),
    separation_bins=7,
    self_condition_bins=8,
    distance_bins=8,
)
GRIDS = {2: list(student_grid(2)), 4: list(student_grid(4))}
DDIM = {2: [1.0, 0.3]}
TEACHER_TRAINING = {
    "model": {"init_args": {"label_dropout": 0.5}},
    "data": {"init_args": {"min_length": 8, "max_length": 24}},
}


def build_runs(runs: Path) -> Path:
    """Folders ``NAME/model`` of a teacher and two students, as training leaves them."""
    torch.manual_seed(0)
    network = ProteinTransformer(SIZES).eval()
    save_transformer(runs / "teacher" / "model", network, training=TEACHER_TRAINING, metrics={})
    for name, renoise, grids in (("sid", "fresh", GRIDS), ("tdm", "ddim", DDIM)):
        roles = {"init_args": {"renoise": renoise, "folds": False}}
        save_transformer(
            runs / name / "model",
            network,
            training={"model": {"init_args": {"roles": roles}}},
            metrics={},
            step_grids=grids,
        )
    return runs


def build(folder: Path) -> Path:
    """A packed model, ``folder/tiny``: students ``sid`` and ``tdm``, a teacher of three steps."""
    runs = build_runs(folder / "runs")
    pack_chains(
        folder / "tiny",
        teacher=runs / "teacher" / "model",
        students={name: runs / name / "model" for name in ("sid", "tdm")},
        default_student="sid",
        default_steps=2,
        teacher_sampling=ChainSampling(num_steps=3),
    )
    return folder / "tiny"
