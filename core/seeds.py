"""Which seeds stand for noise of their own."""

from collections.abc import Iterable

SEEDS = 2**32  # torch's generators on CPUs look at this many bits of a seed and no more


def check_seeds(seeds: Iterable[int]) -> None:
    """Refuse seeds that torch would take for others, where they go to a generator as they are.

    Raises:
        ValueError: one of them is negative, or needs more than 32 bits.
    """
    for seed in seeds:
        if not 0 <= seed < SEEDS:
            raise ValueError(
                f"seed={seed} must be from 0 to 2^32 - 1; others repeat the noise of one of these"
            )
