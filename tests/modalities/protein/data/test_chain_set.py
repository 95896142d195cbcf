"""Sets of chains: what is written comes back, one entry keeps to one split, the bundled set is real."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.modalities.protein.chains import padded
from fewstep.modalities.protein.data.chain_set import (
    BUNDLED,
    BUNDLED_FOLDER,
    CARD,
    CHAINS,
    ChainSet,
    NamedChain,
    bundled_chain_set,
    file_sha256,
    load_chain_set,
    longest_run,
    save_chain_set,
    split_of,
)
from fewstep.modalities.protein.geometry import bond_lengths, right_handed_share


def named(chain: np.ndarray, name: str = "1ABC_A") -> NamedChain:
    return NamedChain(name=name, sequence="G" * len(chain), coordinates=chain)


def test_a_set_comes_back_centred_to_a_hundredth_of_an_angstrom(
    real_chains: list[np.ndarray], real_sequences: list[str], tmp_path: Path
) -> None:
    rows = [
        NamedChain(name=f"{i}XYZ_B", sequence=sequence, coordinates=chain)
        for i, (chain, sequence) in enumerate(zip(real_chains, real_sequences, strict=True))
    ]
    card = save_chain_set(tmp_path / "set", ChainSet.of(rows), origin={"source": "test"})
    found = load_chain_set(tmp_path / "set")
    assert found.names == tuple(row.name for row in rows)
    for number, row in enumerate(rows):
        centred = row.coordinates - row.coordinates.mean(0)
        # half a step, and the same in single precision
        assert np.abs(found.chain(number) - centred).max() < 0.00501
        assert found.sequence(number) == row.sequence
    assert card["chains"] == len(rows) == card["train"] + card["val"]
    assert json.loads((tmp_path / "set" / CARD).read_text())["sha256"] == card["sha256"]


@pytest.mark.parametrize("broken", [2.6, 4.3, 12.0])
def test_the_longest_run_ends_where_a_residue_is_missing_or_misplaced(broken: float) -> None:
    steps = np.full(20, 3.8)
    steps[7] = broken
    x = np.concatenate([[0.0], steps.cumsum()])
    chain = np.stack([x, np.zeros_like(x), np.zeros_like(x)], 1)
    assert longest_run(chain) == slice(8, 21)
    assert longest_run(chain[:1]) == slice(0, 1)


def test_chains_of_one_entry_share_a_split_and_one_entry_in_twenty_validates() -> None:
    assert len({split_of(f"1abc_{chain}") for chain in "ABCDEFGH"}) == 1
    assert split_of("1ABC_A") == split_of("1abc_B")
    # of anybody's files: what comes before the chain is the entry, whatever it holds
    assert {split_of(f"design_{number:03d}_A") for number in range(100)} == {"train", "val"}
    assert split_of("design_007_A") == split_of("design_007_B")
    share = np.mean([split_of(f"{number}_A") == "val" for number in range(4000)])
    assert share == pytest.approx(0.05, abs=0.015)  # four standard errors


def test_what_does_not_fit_is_refused() -> None:
    flat = np.zeros((5, 3))
    with pytest.raises(ValueError, match="no chains"):
        ChainSet.of([])
    with pytest.raises(ValueError, match="5 CA atoms and 4 letters"):
        ChainSet.of([NamedChain(name="a_A", sequence="GGGG", coordinates=flat)])
    far = flat.copy()
    far[0, 0] = 1000.0
    with pytest.raises(ValueError, match="reaches 800 angstrom"):
        ChainSet.of([named(far)])


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no set of chains"):
        load_chain_set(tmp_path)
    (tmp_path / CHAINS).write_bytes(b"not a set")
    with pytest.raises(ValueError, match="is not a set of chains"):
        load_chain_set(tmp_path)


def test_the_bundled_set_is_the_one_on_its_card() -> None:
    chains = bundled_chain_set()
    folder = Path(str(files(BUNDLED)))
    card = json.loads((folder / BUNDLED_FOLDER / CARD).read_text())
    assert file_sha256(folder / BUNDLED_FOLDER / CHAINS) == card["sha256"]
    assert (len(chains), len(chains.coordinates)) == (card["chains"], card["residues"]) == (5583, 515856)
    assert (int(chains.lengths.min()), int(chains.lengths.max())) == (40, 128)
    train, val = (set(chains.chosen(split, lengths=(0, 999)).tolist()) for split in ("train", "val"))
    assert (len(train), len(val), len(train & val)) == (card["train"], card["val"], 0)
    assert len(chains.chosen(None, lengths=(40, 64))) == sum(40 <= length <= 64 for length in chains.lengths)


def test_the_bundled_chains_are_real_and_right_handed() -> None:
    chains = bundled_chain_set()
    rows = padded([chains.chain(number) for number in range(0, len(chains), 37)])
    bonds = bond_lengths(rows)
    bonds = bonds[~bonds.isnan()]
    assert float(bonds.mean()) == pytest.approx(3.80, abs=0.01)
    assert float(((bonds - 3.8).abs() < 0.2).float().mean()) > 0.99
    assert float(right_handed_share(rows).nanmean()) > 0.9
    centres = rows.nanmean(1)
    assert float(centres.abs().max()) < 0.01
    assert set("".join(chains.sequence(number) for number in range(50))) <= set("ACDEFGHIKLMNPQRSTVWY")
    assert torch.isfinite(bonds).all()
