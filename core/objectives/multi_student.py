"""Multi-student distillation: each student serves its share of the conditions (Song et al., 2410.23274)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fewstep.core.denoisers import Condition, Denoiser, FeatureDenoiser
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Turn, given
from fewstep.core.objectives.flow_matching import LOWEST_TIME, Space
from fewstep.core.objectives.trajectories import teacher_on
from fewstep.core.paths import Path
from fewstep.core.schedules import TimeSampler, UniformTimes

Rows = Int[Tensor, " row"]


class Router(nn.Module, ABC):
    """Sends every condition to exactly one of ``num_students`` students.

    Conditions are tensors, or mappings whose tensors have the batch first; override ``select`` for others.
    """

    num_students: int

    @abstractmethod
    def route(self, condition: Condition) -> Rows:
        """The student of each row of a batch, from 0; rows of packed samples are tokens."""

    def select(self, condition: Condition, rows: Rows) -> Condition:
        """The condition of some rows of the batch."""
        if isinstance(condition, Tensor):
            return condition[rows]
        if isinstance(condition, Mapping):
            return {name: self.select(value, rows) for name, value in condition.items()}
        raise ValueError(
            f"condition of type {type(condition).__name__} cannot be split into rows; "
            f"override {type(self).__name__}.select"
        )


def _entry(condition: Condition, key: str | None) -> Tensor:
    value = condition[key] if isinstance(condition, Mapping) else condition
    if not isinstance(value, Tensor):
        raise ValueError(f"condition of type {type(condition).__name__} has no tensor under key={key!r}")
    return value


class ClassRouter(Router):
    """Routes class labels by a partition of the classes.

    Args:
        sets: the classes of each student; together 0, 1, 2, ... with none twice and none missing.
        key: where the labels are, [B] integers, if the condition is a mapping.
    """

    student_of: Tensor

    def __init__(self, sets: Sequence[Sequence[int]], *, key: str | None = None) -> None:
        super().__init__()
        classes = sorted(label for labels in sets for label in labels)
        if classes != list(range(len(classes))) or not all(sets):
            raise ValueError(
                f"sets={sets} must hold each class from 0 on exactly once, and none may be empty"
            )
        self.num_students = len(sets)
        self.key = key
        student_of = torch.empty(len(classes), dtype=torch.int64)
        for student, labels in enumerate(sets):
            student_of[list(labels)] = student
        self.register_buffer("student_of", student_of)

    def route(self, condition: Condition) -> Rows:
        labels = _entry(condition, self.key)
        if bool((labels < 0).any()) or bool((labels >= len(self.student_of)).any()):
            raise ValueError(
                f"labels from {int(labels.min())} to {int(labels.max())} must be from 0 to "
                f"{len(self.student_of) - 1}, the classes of sets"
            )
        return self.student_of[labels]


class NearestRouter(Router):
    """Routes embeddings to the student whose centre is nearest, for conditions without classes.

    Args:
        centres: one per student, for example of clusters of pooled text embeddings.
        key: where the embeddings are, [B, D], if the condition is a mapping.
    """

    centres: Tensor

    def __init__(self, centres: Float[Tensor, " student dim"], *, key: str | None = None) -> None:
        super().__init__()
        self.num_students = len(centres)
        self.key = key
        self.register_buffer("centres", centres)

    def route(self, condition: Condition) -> Rows:
        return torch.cdist(_entry(condition, self.key).to(self.centres), self.centres).argmin(1)


class MultiStudent(nn.Module):
    """Several denoisers as one: each row of a batch goes to the one that its condition is routed to.

    As student, and again as critic, it makes any objective train all students at once, each on its own
    conditions: losses are means over samples, so no student's gradient sees another's, whose rows it never
    gets. A student without a row in a batch is not called and gets no gradient (under DDP, let unused
    parameters be found). Only ``Distiller``'s gradient clipping sees all students together. To generate,
    the student of a condition is enough: ``students[k]``.

    Args:
        students: denoisers of the same path, of any architecture.
        router: chooses among as many.
    """

    def __init__(self, students: Sequence[nn.Module], router: Router) -> None:
        super().__init__()
        paths = [student.path for student in students if isinstance(student, Denoiser)]
        if len(paths) != len(students) or len(set(paths)) != 1:
            raise ValueError(
                f"students must be denoisers of one path, not {[type(s).__name__ for s in students]}"
            )
        if len(students) != router.num_students:
            raise ValueError(f"{len(students)} students, but router.num_students={router.num_students}")
        self.students = nn.ModuleList(students)
        self.router = router
        self._path = paths[0]

    @property
    def path(self) -> Path:
        return self._path

    def forward(
        self, x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch *leading"], condition: Condition
    ) -> Float[Tensor, " batch *event"]:
        return self._routed(lambda student, *arguments: student(*arguments), x_t, t, condition)

    def features(
        self, x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch *leading"], condition: Condition
    ) -> Float[Tensor, " batch *token dim"]:
        """See ``FeatureDenoiser``."""
        return self._routed(_features, x_t, t, condition)

    def _routed(
        self,
        call: Callable[[nn.Module, Tensor, Tensor, Condition], Tensor],
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
    ) -> Tensor:
        chosen = self.router.route(condition)
        if chosen.shape != x_t.shape[:1]:
            raise ValueError(
                f"route() chose {tuple(chosen.shape)} students for x_t of shape {tuple(x_t.shape)}; "
                "choose one for each row"
            )
        order = chosen.argsort(stable=True)
        parts = [
            call(student, x_t[rows], t[rows], self.router.select(condition, rows))
            for student, rows in zip(
                self.students,
                order.split(chosen.bincount(minlength=len(self.students)).tolist()),
                strict=True,
            )
            if len(rows)
        ]
        return torch.cat(parts)[order.argsort()]


def _features(student: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    if not isinstance(student, FeatureDenoiser):
        raise ValueError(f"student {type(student).__name__} has no features(x_t, t, condition)")
    return student.features(x_t, t, condition)


@dataclass(frozen=True, kw_only=True)
class TeacherScoreMatching(Objective):
    r"""The first stage of students smaller than the teacher, whose weights cannot be copied: regress it.

    .. math:: L = E_{t, \epsilon} \| \hat y_{student}(x_t, t) - \hat y_{teacher}(x_t, t) \|^2

    with y in ``space`` and :math:`x_t` data noised to t; data may be the teacher's own samples. Unlike flow
    matching on the data the target holds no noise, so that the loss of a perfect student is 0. Without this
    stage the paper's small students do not converge.
    """

    times: TimeSampler = field(default_factory=lambda: UniformTimes(low=LOWEST_TIME))
    space: Space = "velocity"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"student", "teacher", "data"})

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        student, data = given(turn.student, "student", self), given(turn.data, "data", self)
        teacher = teacher_on(student.path, turn, self)
        x0, layout = data.x0, data.layout
        t, eps = turn.times(self.times, x0, layout), turn.noise_like(x0)
        x_t = teacher.path.add_noise(x0, eps, layout.expand(t, x0))
        with torch.no_grad():
            target = teacher(x_t, layout.times(t), data.condition)
        precise = torch.promote_types(x0.dtype, torch.float32)
        error = student(x_t, layout.times(t), data.condition).to(precise) - target.to(precise)
        scale = layout.expand(teacher.path.error_scale(t, self.space), x0)
        loss = layout.mean((scale * error).square()).mean()
        return loss, {"x0_error_rms": layout.mean(error.detach().square()).mean().sqrt()}
