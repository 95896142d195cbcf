"""Low-rank updates: merged weights do what loralib's layers do."""

import pytest
import torch
from torch.nn import functional as F

from fewstep.modalities.protein.released.lora import merged

RANK, ALPHA = 2, 32.0


def test_a_merged_linear_layer_is_the_layer_beside_its_update() -> None:
    """loralib: :math:`W x + b + (\\alpha / r) B A x`."""
    weight, bias, x = torch.randn(5, 7), torch.randn(5), torch.randn(3, 7)
    a, b = torch.randn(RANK, 7), torch.randn(5, RANK)
    state = {"to_g.weight": weight, "to_g.bias": bias, "to_g.lora_A": a, "to_g.lora_B": b}
    found = merged(state, ALPHA, "file")
    expected = F.linear(x, weight, bias) + ALPHA / RANK * F.linear(F.linear(x, a), b)
    assert set(found) == {"to_g.weight", "to_g.bias"}
    torch.testing.assert_close(F.linear(x, found["to_g.weight"], found["to_g.bias"]), expected)


@pytest.mark.parametrize("rows", [5, 7], ids=["tall", "square"])
def test_a_merged_embedding_is_the_table_beside_its_update(rows: int) -> None:
    """loralib: row i of the table, plus :math:`\\alpha / r` times row i of :math:`A^T`, times :math:`B^T`.

    A square table tells the order of its update by its name only.
    """
    table, index = torch.randn(rows, 7), torch.tensor([0, rows - 1])
    a, b = torch.randn(RANK, rows), torch.randn(7, RANK)
    name = "cond_factory.feat_creators.1.embedding_C"
    state = {f"{name}.weight": table, f"{name}.lora_A": a, f"{name}.lora_B": b}
    found = merged(state, ALPHA, "file")[f"{name}.weight"]
    expected = F.embedding(index, table) + ALPHA / RANK * (F.embedding(index, a.t()) @ b.t())
    torch.testing.assert_close(F.embedding(index, found), expected)


def test_weights_without_updates_pass() -> None:
    state = {"x.weight": torch.randn(2, 2)}
    assert merged(state, ALPHA, "file")["x.weight"] is state["x.weight"]


def test_a_half_update_and_one_of_another_shape_are_refused() -> None:
    whole = {
        "x.weight": torch.zeros(5, 7),
        "x.lora_A": torch.zeros(RANK, 7),
        "x.lora_B": torch.zeros(5, RANK),
    }
    for part in ("weight", "lora_A", "lora_B"):
        half = {name: value for name, value in whole.items() if not name.endswith(part)}
        with pytest.raises(ValueError, match=f"file: the low-rank update of x lacks {part}"):
            merged(half, ALPHA, "file")
    with pytest.raises(ValueError, match=r"x is \[5, 7\]"):
        merged(whole | {"x.lora_B": torch.zeros(6, RANK)}, ALPHA, "file")
