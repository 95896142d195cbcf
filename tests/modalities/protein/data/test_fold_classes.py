"""Classes of folds by their shares of helix and strand."""

import pytest
import torch

from fewstep.modalities.protein.data.fold_classes import UNKNOWN, fold_classes
from fewstep.modalities.protein.secondary_structure import SecondaryStructure


@pytest.mark.parametrize(
    ("helix", "strand", "expected"),
    [
        (60, 0, 0),
        (60, 20, 2),
        (0, 40, 1),
        (20, 40, 2),
        (10, 30, 1),
        (30, 0, UNKNOWN),
        (0, 20, UNKNOWN),
        (0, 0, UNKNOWN),
    ],
)
def test_shares_in_percent_tell_the_class(helix: int, strand: int, expected: int) -> None:
    place = torch.arange(100)[None]
    structure = SecondaryStructure(place < helix, place >= 100 - strand, (100,))
    assert fold_classes(structure).tolist() == [expected]
