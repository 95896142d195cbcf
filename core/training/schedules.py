"""Learning-rate schedules as pure functions of the step."""

import math
from functools import partial
from typing import TypedDict

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class StepFactors(LambdaLR):
    """A LambdaLR whose learning rate is the recipe's: a changed one holds for a run that goes on."""

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs})


class StepSchedule(TypedDict):
    """How a LambdaLR is told to Lightning to be stepped after every optimizer step."""

    scheduler: LambdaLR
    interval: str


class Scheduled(TypedDict):
    """What `configure_optimizers` of an automatically optimised module returns."""

    optimizer: Optimizer
    lr_scheduler: StepSchedule


def warmup_cosine_factor(step: int, *, warmup: int, total: int | None, floor: float = 0.0) -> float:
    """Factor on the learning rate: linear to 1 over `warmup` steps, then a half cosine down to `floor`.

    Args:
        step: optimizer steps already taken.
        warmup: steps of the linear part; the first step already has factor 1 / warmup.
        total: steps of the run; None keeps the factor at 1 after the warm-up.
        floor: factor from the last step on.
    """
    if step < warmup:
        return (step + 1) / warmup
    if total is None or total <= warmup:
        return 1.0
    progress = min(1.0, (step - warmup) / (total - warmup))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_cosine(optimizer: Optimizer, total: int, *, warmup: int = 100, floor: float = 0.02) -> Scheduled:
    """An optimizer with its schedule over `total` steps, as Lightning wants it."""
    factor = partial(warmup_cosine_factor, warmup=warmup, total=total, floor=floor)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": StepFactors(optimizer, factor), "interval": "step"},
    }
