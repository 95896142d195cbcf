import torch

from fewstep.core.training.randomness import step_generator, step_seed


def draw(*key: int | str) -> torch.Tensor:
    return torch.randn(4, generator=step_generator(*key))  # pyright: ignore[reportArgumentType]


def test_the_same_key_draws_the_same_numbers_whatever_was_drawn_before() -> None:
    first = draw(0, 7, "eps")
    torch.randn(100)
    assert torch.equal(first, draw(0, 7, "eps"))


def test_neighbouring_steps_seeds_and_ranks_are_unrelated() -> None:
    keys = [(seed, step, rank) for seed in range(6) for step in range(20) for rank in range(3)]
    draws = torch.stack([draw(*key) for key in keys])
    assert len({step_seed(*key) for key in keys}) == len(keys)
    correlation = torch.corrcoef(torch.stack([draws[:-1].flatten(), draws[1:].flatten()]))[0, 1]
    # 4 standard errors of 1436 independent pairs
    assert abs(correlation.item()) < 4 / 1436**0.5


def test_the_seed_of_a_key_is_the_same_on_every_machine() -> None:
    assert step_seed(0, 1) == 5337895739374401191
