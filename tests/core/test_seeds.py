"""Seeds: those that are refused are those whose noise another one gives as well."""

import pytest
import torch
from torch import Tensor

from fewstep.core.seeds import SEEDS, check_seeds


def noise(seed: int) -> Tensor:
    return torch.randn(64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("seed", "same"), [(SEEDS, 0), (SEEDS + 7, 7), (-1, SEEDS - 1), (2**63, 0)])
def test_what_repeats_another_seeds_noise_is_refused(seed: int, same: int) -> None:
    assert torch.equal(noise(seed), noise(same))
    with pytest.raises(ValueError, match=f"^seed={seed} must be from 0 to 2\\^32 - 1; others repeat"):
        check_seeds([0, seed])


def test_what_has_noise_of_its_own_is_not() -> None:
    check_seeds(range(SEEDS - 2, SEEDS))
    check_seeds([])
    assert not torch.equal(noise(SEEDS - 1), noise(0))
    assert not torch.equal(noise(SEEDS - 1), noise(SEEDS - 2))
