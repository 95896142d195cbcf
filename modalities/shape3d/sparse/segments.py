"""Runs of rows that belong together: the samples of a batch, the windows of a grid."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Bool, Int32, Int64, Shaped
from torch import Tensor

KEPT = torch.inference_mode(False)  # what is kept from inference may be needed in training later


@dataclass(frozen=True, eq=False)
class Segments:
    """Rows one segment after another, without gaps.

    Args:
        lengths: rows of each segment.
    """

    lengths: Int64[Tensor, " segment"]

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def sizes(self) -> list[int]:
        """The lengths, on the host."""
        return self.lengths.tolist()

    @cached_property
    def longest(self) -> int:
        return max(self.sizes)

    @cached_property
    def starts(self) -> list[int]:
        """The first row of each segment."""
        return list(accumulate(self.sizes, initial=0))[:-1]

    @cached_property
    @KEPT
    def bounds(self) -> Int32[Tensor, " bound"]:
        """Where segments begin and the last one ends, as kernels for segments of unequal length take it."""
        return torch.cat([self.lengths.new_zeros(1), self.lengths.cumsum(0)]).int()

    @cached_property
    @KEPT
    def mask(self) -> Bool[Tensor, " segment slot"]:
        """Which slots of a padded batch hold rows."""
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]

    @cached_property
    @KEPT
    def _slots(self) -> Int64[Tensor, " row"]:
        """The slot of each row in a padded batch, flat."""
        return self.mask.flatten().nonzero().squeeze(1)

    def pad(self, rows: Shaped[Tensor, " row *feature"]) -> Shaped[Tensor, " segment slot *feature"]:
        """One segment per item, zeros behind shorter ones."""
        if len(self) == 1:
            return rows[None]
        padded = rows.new_zeros(len(self) * self.longest, *rows.shape[1:]).index_copy(0, self._slots, rows)
        return padded.unflatten(0, (len(self), self.longest))

    def unpad(self, padded: Shaped[Tensor, " segment slot *feature"]) -> Shaped[Tensor, " row *feature"]:
        """The counterpart of `pad`."""
        return padded[0] if len(self) == 1 else padded.flatten(0, 1)[self._slots]
