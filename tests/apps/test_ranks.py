"""Processes of torchrun find each other, or say in a line why they cannot."""

import pytest
from torch import distributed as dist

from fewstep.apps.ranks import Rank, in_group


def test_a_single_process_needs_no_group() -> None:
    with in_group(Rank(), "cuda:7"):
        assert not dist.is_initialized()


def test_one_device_for_several_processes_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="one device for 2 processes; say --device cuda"):
        in_group(Rank(1, 2, 1), "cuda:0").__enter__()
    assert not dist.is_initialized()
