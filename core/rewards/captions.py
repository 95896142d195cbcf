"""Where a reward finds the words that a sample was generated from."""

from collections.abc import Callable, Mapping, Sequence

from fewstep.core.denoisers import Condition

CaptionReader = Callable[[Condition], Sequence[str]]
"""From a condition to one caption per sample, for conditions that only their modality can read."""


def read_captions(condition: Condition) -> Sequence[str]:
    """A mapping's ``captions``, or the condition itself where it is a list of strings."""
    captions = condition.get("captions") if isinstance(condition, Mapping) else condition
    if isinstance(captions, list | tuple) and all(isinstance(caption, str) for caption in captions):
        return captions
    raise ValueError(
        f"condition of type {type(condition).__name__} holds no captions; "
        'give a list of strings or a mapping with "captions", or pass captions=... to the reward'
    )


def captions_of(condition: Condition, batch_size: int, reader: CaptionReader) -> list[str]:
    """One caption per sample, counted."""
    captions = list(reader(condition))
    if len(captions) != batch_size:
        raise ValueError(f"condition holds {len(captions)} captions for {batch_size} samples; give one each")
    return captions
