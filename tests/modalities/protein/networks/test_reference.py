"""Numbers that La-Proteina's classes gave (Apache-2.0, commit 09b5267) on a CPU, for the weights and inputs
of this file: its features, pairs, blocks and pair updates, put together as Proteina does.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.modalities.protein.networks.sequence_features import SEQUENCE_FEATURES
from fewstep.modalities.protein.networks.transformer import ProteinTransformer, ProteinTransformerConfig

NUMBERS = json.loads((Path(__file__).parent / "reference.json").read_text())
GOLDEN_ANGLE = 2.399963229728653
ROUNDING = 5e-6  # float32 through four blocks, for velocities of about 2; measured 5e-7
BATCH, RESIDUES = 2, 7
DISTOGRAM_STRIDE = 37  # every such logit of the first chain was kept
VARIANTS: dict[str, dict[str, Any]] = {
    "constant pairs": {},
    "constant pairs, queries and keys as they are": {"qk_norm": False},
    "updated pairs": {"pair_update_every": 2, "triangles": False},
    "triangles": {"pair_update_every": 2},
}


def wave(shape: tuple[int, ...], pitch: float) -> Tensor:
    """Sines of multiples of an angle: neither periodic nor small."""
    count = torch.Size(shape).numel()
    return (
        torch.sin(torch.arange(1, count + 1, dtype=torch.float64) * GOLDEN_ANGLE * pitch).float().view(shape)
    )


def filled(network: nn.Module) -> nn.Module:
    """With weights of about 1 / sqrt(inputs), each tensor in its own pitch."""
    with torch.no_grad():
        for number, (_, parameter) in enumerate(sorted(network.named_parameters())):
            inputs = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(1.4 * inputs**-0.5 * wave(tuple(parameter.shape), 0.1 + 0.01 * (number % 61)))
    return network


def small(variant: str, **changes: Any) -> ProteinTransformer:
    sizes: dict[str, Any] = dict(
        token_dim=24,
        pair_dim=10,
        cond_dim=16,
        num_blocks=4,
        num_heads=3,
        registers=3,
        time_dim=8,
        index_dim=8,
        fold_dim=4,
        fold_classes=(3, 5, 7),
        separation_bins=9,
        self_condition_bins=12,
        distance_bins=10,
        distogram_bins=6,
    )
    config = ProteinTransformerConfig(**sizes | VARIANTS[variant] | changes)
    network = ProteinTransformer(config).eval()
    filled(network)
    return network


def chains() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noised chains, times, residues, estimates."""
    mask = torch.ones(BATCH, RESIDUES, dtype=torch.bool)
    mask[1, 5:] = False
    shape = (BATCH, RESIDUES, 3)
    return (
        wave(shape, 0.37) * mask[..., None],
        torch.tensor([0.15, 0.8]),
        mask,
        wave(shape, 0.61) * mask[..., None],
    )


@pytest.mark.parametrize("told", [False, True], ids=["untold", "told"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "training"])
def test_velocities_and_distograms_are_those_of_independent_classes(
    variant: str, told: bool, gradient: bool
) -> None:
    expected = NUMBERS[variant + (", told" if told else "")]
    network = small(variant)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected["parameters"]
    x_t, time, mask, estimate = chains()
    x_sc = estimate if told else None
    labels = torch.tensor([[1, 2, 3], [0, 5, 7]]) if told else None
    with torch.set_grad_enabled(gradient):  # attention takes other kernels with and without
        velocity, distogram = network(x_t, time, mask, self_condition=x_sc, labels=labels)
    assert velocity.flatten().tolist() == pytest.approx(expected["velocity"], abs=ROUNDING)
    if expected["distogram"] is None:
        assert distogram is None
    else:
        kept = distogram[0].flatten()[::DISTOGRAM_STRIDE].tolist()
        assert kept == pytest.approx(expected["distogram"], abs=ROUNDING)


def test_our_own_features_give_what_they_gave() -> None:
    """No other implementation has them: the numbers are this one's, so that no change goes unnoticed."""
    network = small("constant pairs", sequence_features=SEQUENCE_FEATURES)
    x_t, time, mask, estimate = chains()
    with torch.no_grad():
        velocity = network(x_t, time, mask, self_condition=estimate).velocity
    assert velocity.flatten().tolist() == pytest.approx(NUMBERS["ours"]["velocity"], abs=ROUNDING)
