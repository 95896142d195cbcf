"""What categories are made of: a solid and the name of its material."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from fewstep.modalities.objects.primitives import Solid

# "main" and "shade" take the object's colour; every other slot keeps its own.
Slot = Literal["main", "shade", "wood", "steel", "rubber", "glass", "cream", "orange", "red"]
SLOTS: tuple[Slot, ...] = get_args(Slot)


@dataclass(frozen=True, eq=False)
class Part:
    """A solid of one material."""

    slot: Slot
    solid: Solid


def pick(rng: np.random.Generator, *slots: Slot) -> Slot:
    """One of the materials at random."""
    return slots[int(rng.integers(len(slots)))]
