"""Learning-rate schedules as pure functions of the step, so that there is no state to resume."""

import math


def warmup_cosine(step: int, *, warmup: int, total: int | None, floor: float = 0.0) -> float:
    """Factor on the learning rate: linear to 1 over `warmup` steps, then a half cosine down to `floor`.

    Args:
        step: optimizer steps already taken.
        warmup: steps of the linear part; the first step already has factor 1 / warmup.
        total: steps of the run; None keeps the factor at 1 after the warm-up.
        floor: factor at the last step.
    """
    if step < warmup:
        return (step + 1) / warmup
    if total is None or total <= warmup:
        return 1.0
    progress = min(1.0, (step - warmup) / (total - warmup))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
