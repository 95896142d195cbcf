"""A network that runs in a millisecond, with a weight behind every input."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fewstep.modalities.protein.networks.sequence_features import SEQUENCE_FEATURES
from fewstep.modalities.protein.networks.transformer import ProteinTransformer, ProteinTransformerConfig

WEIGHT_STD = 0.3


def noisy(network: nn.Module) -> nn.Module:
    """Nothing is zero, so that no input goes unnoticed."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(WEIGHT_STD * torch.randn_like(parameter))
    return network


@pytest.fixture
def tiny() -> Callable[..., ProteinTransformer]:
    """Builds a network: `tiny(pair_update_every=1)`."""

    def build(**changes: Any) -> ProteinTransformer:
        sizes: dict[str, Any] = {
            "token_dim": 16,
            "pair_dim": 8,
            "cond_dim": 12,
            "num_blocks": 3,
            "num_heads": 2,
            "registers": 2,
            "time_dim": 8,
            "index_dim": 8,
            "fold_dim": 4,
            "fold_classes": (3, 2, 2),
            "sequence_features": SEQUENCE_FEATURES,
            "separation_bins": 9,
            "self_condition_bins": 12,
            "distance_bins": 10,
            "distogram_bins": 6,
        }
        network = ProteinTransformer(ProteinTransformerConfig(**sizes | changes))
        noisy(network)
        return network.eval()

    return build
