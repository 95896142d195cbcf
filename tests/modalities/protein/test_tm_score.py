"""TM-score: known values, what it must not depend on, and the search beside TM-align's own."""

from itertools import combinations

import numpy as np
import pytest
import torch

from fewstep.modalities.protein.tm_score import scale, tm_score_of_pairing, tm_scores


def turned(chain: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return chain @ (q * np.sign(np.linalg.det(q))).T + 30 * rng.standard_normal(3)


def test_the_scale_is_that_of_the_paper_and_never_below_a_half() -> None:
    found = scale(torch.tensor([3, 15, 19, 100, 250]))
    assert found[:3].tolist() == [0.5, 0.5, 0.5]
    assert found[3].item() == pytest.approx(1.24 * 85 ** (1 / 3) - 1.8, abs=1e-5)
    assert found[4].item() == pytest.approx(5.852, abs=1e-3)


def test_a_chain_is_like_itself_wherever_it_lies(real_chains: list[np.ndarray]) -> None:
    found = tm_scores(real_chains, [turned(chain, seed) for seed, chain in enumerate(real_chains)])
    assert found.mean == pytest.approx(1.0, abs=1e-4)


def test_a_part_of_a_chain_scores_its_share_of_the_whole(real_chains: list[np.ndarray]) -> None:
    chain = max(real_chains, key=len)
    part = turned(chain[20:90], 3)
    found = tm_scores([part], [chain])
    assert found.by_first[0] == pytest.approx(1.0, abs=1e-4)
    assert found.by_second[0] == pytest.approx(70 / len(chain), abs=0.01)
    other = tm_scores([chain], [part])
    assert other.by_first[0] == pytest.approx(found.by_second[0], abs=0.01)


def test_an_inserted_loop_is_a_gap(real_chains: list[np.ndarray]) -> None:
    chain = max(real_chains, key=len)[:80]
    loop = chain[39] + np.linspace(3, 20, 8)[:, None] * np.array([0.6, 0.8, 0.0])
    found = tm_scores([chain], [turned(np.concatenate([chain[:40], loop, chain[40:]]), 5)])
    assert found.by_first[0] == pytest.approx(1.0, abs=0.005)


def test_a_mirror_image_is_another_fold(real_chains: list[np.ndarray]) -> None:
    chains = [chain for chain in real_chains if len(chain) > 90][:3]
    assert (tm_scores(chains, [chain * [1.0, 1.0, -1.0] for chain in chains]).mean < 0.6).all()


def test_company_changes_a_score_no_more_than_rounding(real_chains: list[np.ndarray]) -> None:
    chains = [chain for chain in real_chains if 60 < len(chain) < 110][:4]
    together = tm_scores(chains, chains[::-1]).mean
    alone = [tm_scores([a], [b]).mean[0] for a, b in zip(chains, chains[::-1], strict=True)]
    assert together == pytest.approx(alone, abs=1e-3)


def test_the_search_finds_what_tm_align_finds(real_chains: list[np.ndarray]) -> None:
    tmtools = pytest.importorskip("tmtools", reason="needs tmtools: pip install 'fewstep[test]'")
    chains = [np.ascontiguousarray(chain) for chain in real_chains if len(chain) >= 60][:12]
    pairs = list(combinations(range(len(chains)), 2))
    ours = tm_scores([chains[i] for i, _ in pairs], [chains[j] for _, j in pairs])
    theirs = [
        tmtools.tm_align(chains[i], chains[j], "A" * len(chains[i]), "A" * len(chains[j])) for i, j in pairs
    ]
    by_first = np.array([one.tm_norm_chain1 for one in theirs])
    by_second = np.array([one.tm_norm_chain2 for one in theirs])
    gap = np.concatenate([ours.by_first - by_first, ours.by_second - by_second])
    # both are searches without a guarantee: equal on the whole, and on every pair that is alike
    assert abs(gap.mean()) < 0.01
    assert gap.min() > -0.07
    alike = np.maximum(by_first, by_second) > 0.5
    assert alike.sum() >= 2
    assert (np.abs(gap[np.tile(alike, 2)]) < 0.02).all()


def test_a_fixed_pairing_has_a_worked_out_score() -> None:
    size = 100
    one = torch.randn(size, 3).double() * 10
    assert tm_score_of_pairing(one, one + 7.0).item() == pytest.approx(1.0, abs=1e-6)
    # half of the chain in place, the other half far away
    broken = one.clone()
    broken[50:] += 1000.0
    assert tm_score_of_pairing(broken, one).item() == pytest.approx(0.5, abs=1e-3)


def test_what_is_no_pair_is_refused() -> None:
    chain = np.zeros((5, 3))
    with pytest.raises(ValueError, match="first has 2 chains, second 1; give pairs"):
        tm_scores([chain, chain], [chain])
    with pytest.raises(ValueError, match="second has a chain of 2 residues"):
        tm_scores([chain], [chain[:2]])
