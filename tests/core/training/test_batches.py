from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.core.training.batches import StepKeyedBatches, consumed_batches

sizes = st.integers(1, 20)


@settings(deadline=None, max_examples=30)
@given(size=sizes, batch_size=st.integers(1, 7), world_size=st.integers(1, 3), seed=st.integers(0, 9))
def test_every_epoch_visits_every_sample_once_over_all_ranks(
    size: int, batch_size: int, world_size: int, seed: int
) -> None:
    ranks = [
        StepKeyedBatches(size, batch_size, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    batches = -(-3 * size // (batch_size * world_size))
    order = [index for k in range(batches) for rank in ranks for index in rank.batch(k)]
    for epoch in range(3):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))


@settings(deadline=None, max_examples=30)
@given(size=sizes, batch_size=st.integers(1, 7), done=st.integers(0, 25))
def test_starting_later_continues_the_same_order(size: int, batch_size: int, done: int) -> None:
    whole = islice(StepKeyedBatches(size, batch_size), done, done + 5)
    assert list(islice(StepKeyedBatches(size, batch_size, first_batch=done), 5)) == list(whole)


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    batches = StepKeyedBatches(32, 32)
    assert batches.batch(0) != batches.batch(1)
    assert batches.batch(0) != StepKeyedBatches(32, 32, seed=1).batch(0)
    assert batches.batch(0) != list(range(32))


def test_a_module_without_trainer_has_consumed_nothing() -> None:
    assert consumed_batches(None) == 0


@pytest.mark.parametrize(
    "arguments",
    [{"size": 0, "batch_size": 1}, {"size": 4, "batch_size": 0}, {"size": 4, "batch_size": 1, "rank": 1}],
)
def test_impossible_sizes_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        StepKeyedBatches(**arguments)
