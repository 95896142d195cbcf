"""SIM: score implicit matching (Luo et al., 2410.16794)."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Turn, given
from fewstep.core.objectives.flow_matching import FlowMatching
from fewstep.core.objectives.sid import compare
from fewstep.core.schedules import TimeSampler, UniformTimes

Distance = Literal["pseudo_huber", "squared"]

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]


def distance_gradient(y: X, layout: Layout = DENSE, *, distance: Distance, c: float) -> X:
    r"""The gradient of a distance of each sample's whole vector y, times the root of its size n.

    .. math:: d(y) = \sqrt{\|y\|^2 + n c^2} - \sqrt{n} c: \quad
        \sqrt{n}\, d'(y) = \frac{y}{\sqrt{\langle y^2 \rangle + c^2}}

    for ``pseudo_huber``, with n the number of real elements of the sample and :math:`\langle\cdot\rangle`
    the mean over them; ``squared`` is the plain :math:`2 y`.
    """
    match distance:
        case "pseudo_huber":
            return y / layout.expand((layout.mean(y.square()) + c**2).sqrt(), y)
        case "squared":
            return 2 * y


@dataclass(frozen=True, kw_only=True)
class SIM(Objective):
    r"""Minimise a distance between the scores of student and teacher, at a law of x_t held fixed.

    .. math:: L = -\,d'(y) \cdot (D_f(x_t) - x), \qquad y = D_f(x_t) - D_r(x_t)

    has the gradient of :math:`E\,d(y)` in which :math:`x_t` is distributed as the student's, detached. The
    gradient flows through :math:`x_t` into y and :math:`D_f`; teacher and critic are frozen. Means are over
    elements, so the pseudo-Huber loss is the paper's over :math:`\sqrt{n}`: each sample counts the same,
    whatever its size. The squared distance is twice SiD at alpha = 1.

    The paper's training code is not released; its weight over time and c are not known.

    Args:
        distance: of whole samples, not of elements: ``pseudo_huber`` is its own normaliser.
        c: per root of the number of elements, where the pseudo-Huber distance turns from squared to linear.
            The default is what Song & Dhariwal (2310.14189) use for consistency models: their
            :math:`0.00054 \sqrt{n}` grows with the norm of a sample, so that one c serves all sizes.
    """

    distance: Distance = "pseudo_huber"
    c: float = 0.00054
    times: TimeSampler = field(default_factory=lambda: UniformTimes(low=0.02, high=0.98))
    regression: FlowMatching = field(
        default_factory=lambda: FlowMatching(times=UniformTimes(low=0.02, high=0.98))
    )

    def __post_init__(self) -> None:
        if self.c <= 0:
            raise ValueError(f"c={self.c} must be positive; at 0 equal denoisers give 0 / 0")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"teacher", "critic", "sample"})

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        teacher, critic = given(turn.teacher, "teacher", self), given(turn.critic, "critic", self)
        seen = compare(turn, self, self.times, teacher, critic)
        layout = given(turn.sample, "sample", self).layout
        y = seen.x0_critic - seen.x0_teacher
        slope = distance_gradient(y, layout, distance=self.distance, c=self.c)
        loss = -layout.mean(slope * (seen.x0_critic - seen.x)).mean()
        with torch.no_grad():
            diagnostics = {
                "gap_rms": layout.mean(y.square()).mean().sqrt(),
                "slope_rms": layout.mean(slope.square()).mean().sqrt(),
            }
        return loss, diagnostics

    def critic_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.critic_loss``."""
        sample, critic = given(turn.sample, "sample", self), given(turn.critic, "critic", self)
        return self.regression.loss_in(
            turn, critic, sample.x, condition=sample.condition, layout=sample.layout
        )
