"""Lightning's files of Proteina, and of students: strict, whatever stands before the names."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fewstep.modalities.protein.model_folder import load_transformer, save_transformer
from fewstep.modalities.protein.networks.sequence_features import SequenceFeature
from fewstep.modalities.protein.networks.transformer import ProteinTransformer
from fewstep.modalities.protein.released.checkpoint import LICENCE, load_released

Networks = Callable[..., ProteinTransformer]
Write = Callable[..., Path]

ORDERS: list[tuple[SequenceFeature, ...]] = [
    ("res_seq_pdb_idx", "x_sc", "chain_break_per_res"),
    ("res_seq_pdb_idx", "chain_break_per_res", "x_sc"),
]


def same(found: ProteinTransformer, expected: ProteinTransformer) -> None:
    """Both say the same of the same chains."""
    x_t, told = torch.randn(2, 6, 3), torch.randn(2, 6, 3)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    arguments = (x_t, torch.tensor([0.2, 0.9]), mask)
    labels = torch.tensor([[0, 1, 2], [3, 4, 5]])
    with torch.no_grad():
        theirs = expected(*arguments, self_condition=told, labels=labels)
        ours = found(*arguments, self_condition=told, labels=labels)
    torch.testing.assert_close(ours.velocity, theirs.velocity, atol=1e-6, rtol=1e-5)
    if theirs.distogram is not None:
        torch.testing.assert_close(ours.distogram, theirs.distogram, atol=1e-6, rtol=1e-5)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    ("changes", "written"),
    [
        ({}, {}),
        ({"pair_update_every": 3}, {"update_pair_repr": True}),
        (
            {"pair_update_every": 2, "triangles": False},
            {"update_pair_repr": True, "use_tri_mult": False, "update_pair_repr_every_n": 2},
        ),
        ({"qk_norm": False}, {"use_qkln": False}),
    ],
    ids=["constant pairs", "triangles", "updated pairs", "queries and keys as they are"],
)
def test_a_lightning_file_gives_its_network(
    network: Networks, lightning_file: Write, changes: dict[str, object], written: dict[str, object]
) -> None:
    teacher = network(**changes)
    found = load_released(lightning_file(teacher.state_dict(), **written))
    same(found, teacher)
    assert not found.training
    assert all(parameter.requires_grad for parameter in found.parameters()), "students start from teachers"


@pytest.mark.parametrize("order", ORDERS)
def test_a_lightning_file_says_the_order_of_its_columns(
    network: Networks, lightning_file: Write, order: tuple[SequenceFeature, ...]
) -> None:
    teacher = network(sequence_features=order)
    found = load_released(lightning_file(teacher.state_dict(), feats_init_seq=list(order)))
    assert found.config.sequence_features == order
    same(found, teacher)


@pytest.mark.parametrize("prefix", ["nn.", "model.nn.", "module.model.nn.", "model.module.nn."])
@pytest.mark.parametrize("nested", [False, True], ids=["bare", "state_dict"])
def test_students_files_are_bare_weights_under_any_wrapper(
    network: Networks, tmp_path: Path, prefix: str, nested: bool
) -> None:
    student = network(pair_update_every=2)
    state = prefixed(student.state_dict(), prefix)
    torch.save({"state_dict": state} if nested else state, tmp_path / "student.pt")
    same(load_released(tmp_path / "student.pt"), student)


def test_the_order_of_columns_can_be_told(network: Networks, tmp_path: Path) -> None:
    student = network(sequence_features=ORDERS[1])
    torch.save(prefixed(student.state_dict(), "nn."), tmp_path / "student.pt")
    same(load_released(tmp_path / "student.pt", sequence_features=ORDERS[1]), student)
    wrong = load_released(tmp_path / "student.pt", sequence_features=ORDERS[0])
    with pytest.raises(AssertionError):
        same(wrong, student)


def test_raw_and_averaged_weights_are_two_files_that_read_alike(
    network: Networks, lightning_file: Write
) -> None:
    raw, average = network(), network()
    path = lightning_file(raw.state_dict())
    same(load_released(path), raw)
    path.rename(path.with_name("proteina-EMA.ckpt"))
    same(load_released(lightning_file(average.state_dict())), average)
    same(load_released(path.with_name("proteina-EMA.ckpt")), raw)


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_low_rank_updates_are_merged_with_the_scale_that_the_file_says(
    network: Networks, lightning_file: Write, alpha: float | None
) -> None:
    teacher = network()
    state = dict(teacher.state_dict())
    scale = (alpha or 32.0) / 2
    for name, value in list(state.items()):
        base, _, kind = name.rpartition(".")
        if kind == "weight" and value.ndim == 2:
            embedding = "embedding_" in base
            a = 0.1 * torch.randn(2, value.shape[0 if embedding else 1])
            b = 0.1 * torch.randn(value.shape[1 if embedding else 0], 2)
            update = scale * (b @ a)
            state |= {f"{base}.lora_A": a, f"{base}.lora_B": b}
            state[name] = value - (update.t() if embedding else update)
    same(load_released(lightning_file(state, lora_alpha=alpha)), teacher)


def test_half_precision_becomes_float32(network: Networks, tmp_path: Path) -> None:
    teacher = network().to(torch.bfloat16)
    save_file(prefixed(teacher.state_dict(), "nn."), tmp_path / "teacher.safetensors")
    found = load_released(tmp_path / "teacher.safetensors")
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    same(found, teacher.float())


def test_missing_unexpected_and_reshaped_weights_are_named(network: Networks, lightning_file: Write) -> None:
    state = network().state_dict()
    less = {name: value for name, value in state.items() if name != "coors_3d_decoder.0.bias"}
    with pytest.raises(
        ValueError, match=r"does not fit the network; missing: coors_3d_decoder\.0\.bias; copy the file"
    ):
        load_released(lightning_file(less))
    with pytest.raises(ValueError, match="unexpected: extra"):
        load_released(lightning_file(state | {"extra": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"reshaped: coors_3d_decoder\.0\.bias \[3\] instead of \[16\]"):
        load_released(lightning_file(state | {"coors_3d_decoder.0.bias": torch.zeros(3)}))


def test_names_outside_the_network_and_names_twice_are_refused(network: Networks, tmp_path: Path) -> None:
    state = prefixed(network().state_dict(), "nn.")
    torch.save(state | {"loss.weight": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"unexpected: loss\.weight"):
        load_released(tmp_path / "x.pt")
    torch.save(state | {"model.nn.registers": state["nn.registers"]}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds registers twice"):
        load_released(tmp_path / "x.pt")


def test_a_motif_model_is_refused_by_name(network: Networks, lightning_file: Write) -> None:
    features = ["res_seq_pdb_idx", "chain_break_per_res", "x_sc", "motif_x1"]
    with pytest.raises(ValueError, match=r"motif_x1.* is not supported"):
        load_released(lightning_file(network().state_dict(), feats_init_seq=features))
    with pytest.raises(ValueError, match=r"parallel_mha_transition.* is not supported"):
        load_released(lightning_file(network().state_dict(), parallel_mha_transition=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, expected weights by name"),
        ({"state_dict": 3}, "state_dict is a int"),
        ({"state_dict": {}}, "it is empty"),
        ({"epoch": 3}, "it has epoch"),
        ({"nn.x": torch.zeros(2)}, "is not Proteina's transformer"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        load_released(tmp_path / "x.pt")


def test_the_terms_of_the_weights_are_told(
    network: Networks, lightning_file: Write, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load_released(lightning_file(network().state_dict()))
    assert "not for commercial use" in caplog.text


def test_a_released_file_becomes_a_model_folder_with_its_terms(
    network: Networks, lightning_file: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = network(pair_update_every=3)
    found, card = load_transformer(lightning_file(teacher.state_dict(), update_pair_repr=True))
    assert card.licence == LICENCE
    save_transformer(tmp_path / "folder", found, training={}, metrics={}, licence=card.licence)
    caplog.clear()
    again, card = load_transformer(tmp_path / "folder")
    assert again.config == teacher.config
    assert card.licence == LICENCE
    assert "not for commercial use" in caplog.text
    same(again, teacher)


def test_a_network_of_ones_own_is_free_and_loads_in_silence(
    network: Networks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = network(sequence_features=("res_seq_pdb_idx", "ca_local_diff", "ca_chirality", "x_sc"))
    save_transformer(tmp_path / "folder", own, training={}, metrics={})
    found, card = load_transformer(tmp_path / "folder")
    assert card.licence == "Apache-2.0"
    assert not caplog.text
    same(found, own)
