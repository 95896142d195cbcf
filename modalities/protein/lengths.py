"""How long the designs of a run are: a length, a list, ranges, or several of them."""

import re
from itertools import pairwise

import numpy as np

LONGEST = 2000  # residues


def parsed_lengths(text: str) -> tuple[tuple[int, int], ...]:
    """``60``, ``60,80`` and ``50-120`` (evenly), and any of these with commas between, as ranges.

    Raises:
        ValueError: naming what cannot be read.
    """
    ranges = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if found is None:
            raise ValueError(f"length {part!r} must be a number, or two with a dash, such as 60 or 50-120")
        low, high = int(found[1]), int(found[2] or found[1])
        if not 4 <= low <= high <= LONGEST:
            raise ValueError(f"length {part.strip()} must rise, from 4 to {LONGEST} residues")
        ranges.append((low, high))
    return tuple(ranges)


def lengths_of(ranges: tuple[tuple[int, int], ...], count: int) -> list[int]:
    """As many lengths: each part of the list in turn, as equally as can be, each range evenly and rising.

    Neighbours are alike, so that batches of them need little padding. Nothing is drawn: the same request
    always has the same lengths.
    """
    ends = np.linspace(0, count, len(ranges) + 1).round().astype(int)
    lengths: list[int] = []
    for (low, high), (start, stop) in zip(ranges, pairwise(ends.tolist()), strict=True):
        places = (np.arange(stop - start) + 0.5) / max(stop - start, 1)
        lengths += (low + np.floor(places * (high - low + 1))).astype(int).tolist()
    return lengths
