"""The data module: batches of like length, rotated, the same after a resume."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.modalities.protein.data.chain_set import ChainSet, NamedChain, save_chain_set
from fewstep.modalities.protein.data.module import POOL, BatchesOfLikeLength, ProteinDataModule
from fewstep.modalities.protein.files import structure_bytes


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory, real_chains: list[np.ndarray]) -> Path:
    """Every real chain under ten names, of which some are for validation."""
    folder = tmp_path_factory.mktemp("chains")
    rows = [
        NamedChain(name=f"{i:02d}{k}x_A", sequence="G" * len(chain), coordinates=chain)
        for i, chain in enumerate(real_chains)
        for k in range(10)
    ]
    save_chain_set(folder, ChainSet.of(rows), origin={})
    return folder


def module(folder: Path, **options: int) -> ProteinDataModule:
    data = ProteinDataModule(str(folder), batch_size=3, **options)
    data.setup("fit")
    return data


def test_a_batch_is_centred_masked_and_in_nanometre(small_set: Path) -> None:
    batch = next(iter(module(small_set).train_dataloader()))
    x0, mask = batch["x0"], batch["mask"]
    assert mask.any(0).all(), "no column is padding alone"
    assert float(x0.sum(1).abs().max()) < 1e-4
    assert not x0[~mask].any()
    bonds = (x0[:, 1:] - x0[:, :-1]).norm(dim=-1)[mask[:, 1:]]
    assert float(bonds.mean()) == pytest.approx(0.38, abs=0.005)


def test_training_chains_are_turned_and_validation_chains_are_not(small_set: Path) -> None:
    data = module(small_set)
    train, val = data.load("train"), data.load("val")
    one, again, other = (train.__getitems__([(0, key)])["x0"][0] for key in (1, 1, 2))
    assert torch.equal(one, again)
    assert float((one - other).abs().max()) > 0.1
    turn = torch.linalg.lstsq(one, other).solution
    torch.testing.assert_close(one @ turn, other, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(turn @ turn.T, torch.eye(3), atol=1e-4, rtol=0.0)
    assert float(torch.linalg.det(turn)) == pytest.approx(1, abs=1e-4)
    assert torch.equal(val.__getitems__([(0, 1)])["x0"], val.__getitems__([(0, 2)])["x0"])


def test_every_chain_comes_once_in_an_epoch_in_batches_that_pad_little() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(40, 129, (POOL * 4 * 3,), generator=generator).tolist()
    batches = BatchesOfLikeLength(lengths, 4, seed=5)
    picked = [[place for place, _ in batches.batch(k)] for k in range(3 * POOL)]
    assert sorted(place for batch in picked for place in batch) == list(range(len(lengths)))
    padded = sum(4 * max(lengths[place] for place in batch) for batch in picked)
    at_random = sum(4 * max(lengths[place] for place in range(k, k + 4)) for k in range(0, len(lengths), 4))
    assert padded < 1.05 * sum(lengths) < 0.9 * at_random


def test_batches_and_rotations_follow_from_their_number_alone() -> None:
    lengths = list(range(40, 140))
    whole = iter(BatchesOfLikeLength(lengths, 2, seed=1))
    first = [next(whole) for _ in range(2 * POOL)]
    resumed = iter(BatchesOfLikeLength(lengths, 2, seed=1, first_batch=POOL + 3))
    assert [next(resumed) for _ in range(POOL - 3)] == first[POOL + 3 :]
    assert next(iter(BatchesOfLikeLength(lengths, 2, seed=2))) != first[0]
    ranks = [BatchesOfLikeLength(lengths, 2, seed=1, rank=rank, world_size=2).batch(0) for rank in (0, 1)]
    assert not {place for place, _ in ranks[0]} & {place for place, _ in ranks[1]}


def test_lengths_that_leave_nothing_are_an_error(small_set: Path) -> None:
    with pytest.raises(ValueError, match=r"leave no train chain of 150"):
        module(small_set, min_length=500, max_length=600)
    with pytest.raises(ValueError, match="min_length=9 must be"):
        ProteinDataModule(min_length=9, max_length=8)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        ProteinDataModule("/nowhere/at/all").setup("fit")


def test_a_folder_of_files_may_hold_chains_too_large_for_a_set(tmp_path: Path) -> None:
    pytest.importorskip("biotite", reason="needs biotite: pip install 'fewstep[protein]'")
    for size in (45, 300):  # straight, the longer one reaches 570 angstrom from its centre
        chain = np.zeros((size, 1, 3))
        chain[:, 0, 0] = 3.8 * np.arange(size)
        (tmp_path / f"s{size}.pdb").write_bytes(structure_bytes(chain, kind="pdb"))
    assert ProteinDataModule(str(tmp_path), max_length=60).load("train").lengths == [45]
