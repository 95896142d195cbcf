"""A small network with the released bins, and files as Lightning writes them."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.modalities.protein.networks.transformer import ProteinTransformer, ProteinTransformerConfig

SIZES: dict[str, Any] = {
    "token_dim": 16,
    "pair_dim": 8,
    "cond_dim": 12,
    "num_blocks": 4,
    "num_heads": 2,
    "registers": 3,
    "time_dim": 6,
    "index_dim": 10,
    "fold_dim": 4,
    "fold_classes": (3, 4, 5),
}
WRITTEN: dict[str, Any] = {
    "name": "ca_af3",
    "token_dim": 16,
    "nlayers": 4,
    "nheads": 2,
    "residual_mha": True,
    "residual_transition": True,
    "parallel_mha_transition": False,
    "use_attn_pair_bias": True,
    "feats_init_seq": ["res_seq_pdb_idx", "x_sc", "chain_break_per_res"],
    "feats_cond_seq": ["time_emb", "fold_emb"],
    "t_emb_dim": 6,
    "dim_cond": 12,
    "idx_emb_dim": 10,
    "fold_emb_dim": 4,
    "feats_pair_repr": ["rel_seq_sep", "x_sc_pair_dists", "xt_pair_dists"],
    "feats_pair_cond": ["time_emb"],
    "xt_pair_dist_dim": 64,
    "xt_pair_dist_min": 0.1,
    "xt_pair_dist_max": 3,
    "x_sc_pair_dist_dim": 128,
    "x_sc_pair_dist_min": 0.1,
    "x_sc_pair_dist_max": 3,
    "seq_sep_dim": 127,
    "pair_repr_dim": 8,
    "update_pair_repr": False,
    "update_pair_repr_every_n": 3,
    "use_tri_mult": True,
    "num_registers": 3,
    "use_qkln": True,
    "num_buckets_predict_pair": 64,
}  # as in the configurations of the released models


@pytest.fixture
def network() -> Callable[..., ProteinTransformer]:
    """Builds one whose weights are all different from zero: `network(pair_update_every=2)`."""

    def build(**changes: Any) -> ProteinTransformer:
        built = ProteinTransformer(ProteinTransformerConfig(**SIZES | changes)).eval()
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return built

    return build


class Node:
    """What OmegaConf's objects look like in a pickle: a class to import and a state."""

    def __init__(self, **state: object) -> None:
        self.__dict__.update(state, _metadata={"ref_type": Any, "object_type": dict}, _parent=None)


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], object]:
    """Turns plain values into OmegaConf's containers, whose classes can be imported in this test only."""
    classes: dict[str, type[Node]] = {}
    monkeypatch.setitem(sys.modules, "omegaconf", ModuleType("omegaconf"))
    for module, name in (("dictconfig", "DictConfig"), ("listconfig", "ListConfig"), ("nodes", "AnyNode")):
        full = f"omegaconf.{module}"
        classes[name] = type(name, (Node,), {"__module__": full})
        fake = ModuleType(full)
        setattr(fake, name, classes[name])
        monkeypatch.setitem(sys.modules, full, fake)

    def wrap(value: object) -> object:
        if isinstance(value, Mapping):
            return classes["DictConfig"](_content={name: wrap(one) for name, one in value.items()})
        if isinstance(value, list):
            return classes["ListConfig"](_content=[wrap(one) for one in value])
        return classes["AnyNode"](_val=value)

    return wrap


@pytest.fixture
def lightning_file(configured: Callable[[object], object], tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint: `lightning_file(state, nlayers=4)`, with changes of the written configuration."""

    def write(state: Mapping[str, Tensor], *, lora_alpha: float | None = None, **changes: object) -> Path:
        experiment = {
            "model": {"nn": WRITTEN | changes, "target_pred": "v"},
            "lora": {"lora_alpha": lora_alpha},
        }
        moments = {0: {"step": torch.tensor(7.0), "exp_avg": torch.randn(1000)}}
        content = {
            "state_dict": {f"nn.{name}": value for name, value in state.items()},
            "hyper_parameters": {"cfg_exp": configured(experiment), "store_dir": Path("runs")},
            "optimizer_states": [{"opt": {"state": moments, "param_groups": [{"lr": 1e-4}]}, "decay": 0.999}],
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "seen": {1, 2}}},
            "epoch": 3,
            "global_step": 7,
            "pytorch-lightning_version": "2.5.0",
            "nsamples_processed": 4096,
        }
        path = tmp_path / "proteina.ckpt"
        torch.save(content, path)
        return path

    return write
