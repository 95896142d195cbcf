"""What a judge is asked about each sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from fewstep.core.denoisers import Condition
from fewstep.core.rewards.captions import CaptionReader, captions_of, read_captions

CAPTION = "{caption}"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question to be answered yes or no, and the answer that a good sample gets."""

    text: str
    good_answer: Literal["yes", "no"] = "yes"


@runtime_checkable
class Asks(Protocol):
    """One question per sample of a batch; what to ask may depend on the condition."""

    def __call__(self, condition: Condition, batch_size: int) -> Sequence[Question]: ...


@dataclass(frozen=True, kw_only=True)
class CaptionQuestion:
    """The same question about every sample, with its caption filled in.

    Args:
        template: ``{caption}`` stands for the caption; a template without it asks nothing of the condition.
        good_answer: what a good sample gets; "no" for something that should be gone.
        captions: how to read the captions out of a condition.
    """

    template: str = 'Does this show exactly what "{caption}" says? Answer with one word, Yes or No.'
    good_answer: Literal["yes", "no"] = "yes"
    captions: CaptionReader = read_captions

    def __call__(self, condition: Condition, batch_size: int) -> Sequence[Question]:
        texts = [self.template] * batch_size
        if CAPTION in self.template:
            captions = captions_of(condition, batch_size, self.captions)
            texts = [self.template.replace(CAPTION, caption) for caption in captions]
        return [Question(text=text, good_answer=self.good_answer) for text in texts]
