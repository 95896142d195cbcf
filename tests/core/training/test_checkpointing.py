import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.training.checkpointing import checkpoint_blocks, recomputed_within

SIZE = 32


class Pair(NamedTuple):
    """What a block may be given beside its input."""

    scale: Tensor
    shift: Tensor


class Block(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(SIZE, 4 * SIZE), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * SIZE, SIZE)
        )
        self.calls = 0

    def forward(self, x: Tensor, pair: Pair, *, gain: float = 1.0) -> tuple[Tensor, Pair]:
        self.calls += 1
        return x + gain * self.inner(x * pair.scale + pair.shift), pair


class Tower(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        pair = Pair(torch.full((SIZE,), 0.9), torch.zeros(SIZE))
        for block in self.blocks:
            x, pair = block(x, pair, gain=0.5)
        return x


def run(tower: Tower, x: Tensor) -> tuple[Tensor, dict[str, Tensor], int]:
    """The output, the gradients, and the bytes kept for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)
    weights = {p.data_ptr() for p in tower.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = tower(x)
    y.square().sum().backward()
    gradients = {name: p.grad for name, p in tower.named_parameters() if p.grad is not None}
    return y.detach(), gradients, sum(size for pointer, size in kept.items() if pointer not in weights)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_the_same_and_less_is_kept(dropout: float) -> None:
    x = torch.randn(64, SIZE, requires_grad=True)
    plain, checkpointed = Tower(dropout), Tower(dropout)
    checkpoint_blocks(checkpointed.blocks)
    expected, found = run(plain, x), run(checkpointed, x)
    assert torch.equal(found[0], expected[0])
    assert len(found[1]) == len(expected[1]) == 24
    for name, gradient in expected[1].items():
        assert torch.equal(found[1][name], gradient), name
    # of a block's own tensors (input, 4 wide ones, ...) the input alone
    assert found[2] < 0.2 * expected[2]
    assert all(block.calls == 2 for block in checkpointed.blocks)


def test_names_and_weights_stay_and_a_copy_recomputes_with_its_own() -> None:
    tower = Tower()
    names = list(tower.state_dict())
    checkpoint_blocks(tower.blocks)
    assert list(tower.state_dict()) == names
    copied = copy.deepcopy(tower)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
    plain = Tower()
    plain.load_state_dict(copied.state_dict())
    x = torch.randn(4, SIZE)
    expected, found = run(plain, x)[1], run(copied, x)[1]
    assert all(p.grad is None for p in tower.parameters())
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient)


def test_without_gradients_nothing_is_computed_twice() -> None:
    tower = Tower()
    checkpoint_blocks(tower.blocks)
    x, direction = torch.randn(4, SIZE), torch.randn(4, SIZE)
    with torch.no_grad():
        tower(x)
        value, slope = torch.func.jvp(tower, (x,), (direction,))[:2]
    assert all(block.calls == 2 for block in tower.blocks)
    expected = torch.func.jvp(Tower(), (x,), (direction,))
    assert torch.equal(value, expected[0])
    torch.testing.assert_close(slope, expected[1])


def test_what_surrounds_a_call_surrounds_its_repetition() -> None:
    state = {"gain": 1.0}

    @contextmanager
    def gain(value: float) -> Iterator[None]:
        before, state["gain"] = state["gain"], value
        try:
            yield
        finally:
            state["gain"] = before

    class Gained(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (state["gain"] * x).tanh()

    def slope(*, remembered: bool) -> Tensor:
        module, x = Gained(), torch.tensor([0.3], requires_grad=True)
        checkpoint_blocks([module])
        with gain(2.0):
            if remembered:
                with recomputed_within(lambda: gain(2.0)):
                    y = module(x)
            else:
                y = module(x)
        return torch.autograd.grad(y.sum(), x)[0]

    exact = 2.0 * (1 - torch.tensor([0.6]).tanh().square())
    torch.testing.assert_close(slope(remembered=True), exact)
    assert not torch.allclose(slope(remembered=False), exact)  # the control: repeated with a gain of 1
    assert state["gain"] == 1.0
