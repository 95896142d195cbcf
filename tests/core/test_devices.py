"""Devices by name."""

import pytest
import torch

from fewstep.core.devices import usable_device


@pytest.mark.parametrize("name", ["cpu", "meta"])
def test_what_is_there_is_torchs_own(name: str) -> None:
    assert usable_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["cuda:99", "graphics", ""])
def test_what_is_not_there_is_named_with_the_remedy_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=rf"no device '{name}' here \(.+\); `fewstep doctor`") as caught:
        usable_device(name)
    assert "\n" not in str(caught.value)
