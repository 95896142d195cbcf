"""What every test starts from: the same random numbers, one thread."""

import random

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # tiny tensors gain nothing from more, and sums keep their order on every machine


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
