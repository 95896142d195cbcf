import copy

import pytest
import torch
from torch import nn

from fewstep.core.training.ema import EMA


def walk(module: nn.Module, ema: EMA, steps: int) -> None:
    for step in range(steps):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.full_like(parameter, float(step + 1)))
        ema.update(module)


def test_average_follows_the_recursion_with_warm_up() -> None:
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(0.0)
    ema = EMA(module, decay=0.5)
    walk(module, ema, 3)
    expected = 0.0
    for n, value in enumerate([1.0, 2.0, 3.0]):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert ema.averaged_state()["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_before_its_start_step_the_average_is_the_weights_themselves() -> None:
    module = nn.Linear(2, 2)
    ema = EMA(module, decay=0.99, start_step=4)
    walk(module, ema, 4)
    assert torch.equal(ema.averaged_state()["weight"], module.weight)


def test_constant_weights_are_a_fixed_point() -> None:
    module = nn.Linear(3, 2)
    before = copy.deepcopy(module.state_dict())
    ema = EMA(module, decay=0.9)
    for _ in range(5):
        ema.update(module)
    assert all(torch.equal(ema.averaged_state()[name], value) for name, value in before.items())


def test_bfloat16_weights_are_averaged_in_float32_even_when_everything_is_cast() -> None:
    module = nn.Linear(1, 1, bias=False)
    holder = nn.ModuleDict({"net": module, "ema": EMA(module, decay=0.999)})
    ema = holder["ema"]
    assert isinstance(ema, EMA)
    with torch.no_grad():
        ema.get_buffer("average/weight").fill_(1.0 + 2**-12)
    holder.to(torch.bfloat16)
    assert module.weight.dtype == torch.bfloat16
    assert ema.averaged_state()["weight"].item() == 1.0 + 2**-12


def test_swapping_shows_the_average_and_restores_the_weights_even_after_an_error() -> None:
    module = nn.Linear(2, 2)
    ema = EMA(module, decay=0.9)
    walk(module, ema, 5)
    weights = module.weight.detach().clone()
    average = ema.averaged_state()["weight"]
    assert not torch.equal(average, weights)
    with ema.swapped(module):
        assert torch.equal(module.weight, average)
    assert torch.equal(module.weight, weights)
    with pytest.raises(ZeroDivisionError), ema.swapped(module):
        _ = 1 / 0
    assert torch.equal(module.weight, weights)


def test_a_restored_average_continues_bit_for_bit() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    ema = EMA(module, decay=0.9)
    walk(module, ema, 3)
    restored = EMA(module, decay=0.9)
    restored.load_state_dict(ema.state_dict())
    for average in (ema, restored):
        walk(module, average, 4)
    assert all(torch.equal(value, restored.state_dict()[name]) for name, value in ema.state_dict().items())


def test_frozen_parameters_are_not_averaged_and_a_wholly_frozen_module_is_refused() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert set(EMA(module).averaged_state()) == {"weight"}
    with pytest.raises(ValueError, match="no trainable parameter"):
        EMA(module.requires_grad_(False))


def test_another_module_and_a_bad_decay_are_refused() -> None:
    with pytest.raises(ValueError, match="lacks averaged parameters"):
        EMA(nn.Linear(2, 2)).update(nn.ReLU())
    with pytest.raises(ValueError, match="decay"):
        EMA(nn.Linear(2, 2), decay=1.0)
