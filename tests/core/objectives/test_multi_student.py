"""Several students as one: who serves whom, and whose gradient it is."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import Denoiser, FeatureDenoiser
from fewstep.core.layouts import append_dims
from fewstep.core.objectives.contract import Objective, Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.multi_student import (
    ClassRouter,
    MultiStudent,
    NearestRouter,
    Router,
)
from fewstep.core.objectives.sid import SiD
from fewstep.core.paths import LinearPath, VPPath
from fewstep.core.paths import Path as NoisingPath
from fewstep.core.rollouts import FewStep
from fewstep.core.training.distiller import Distiller
from fewstep.core.training.roles import Roles

TEACHER = GaussianDenoiser(mean=1.3, std=0.7)
HALVES = ((0, 2, 3), (1, 4))
LABELS = torch.tensor([1, 0, 4, 2, 2, 1])
STUDENT_OF = torch.tensor([1, 0, 1, 0, 0, 1])


class Affine(nn.Module):
    """x0 = slope x_t + offset, with one feature per token."""

    def __init__(self, slope: float = 0.5, offset: float = 0.0, path: NoisingPath | None = None) -> None:
        super().__init__()
        self.path = path or LinearPath()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))
        self.offset = nn.Parameter(torch.tensor(offset, dtype=torch.float64))
        self.seen: list[object] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        self.seen.append(condition)
        return self.slope * x_t + self.offset + 0 * append_dims(t, x_t)

    def features(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return (self.slope * x_t).unsqueeze(-1)


def two(path: NoisingPath | None = None) -> MultiStudent:
    return MultiStudent([Affine(0.5, 10.0, path), Affine(0.25, -10.0, path)], ClassRouter(HALVES))


def gradients(student: MultiStudent, of: int) -> list[Tensor | None]:
    return [parameter.grad for parameter in student.students[of].parameters()]


# --- routers


@given(
    assignment=st.lists(st.integers(0, 3), min_size=4, max_size=12).filter(lambda a: set(a) == {0, 1, 2, 3})
)
def test_every_class_has_exactly_one_student(assignment: list[int]) -> None:
    """T-MSD-1."""
    sets = [[label for label, student in enumerate(assignment) if student == k] for k in range(4)]
    router = ClassRouter(sets)
    chosen = router.route(torch.arange(len(assignment)))
    assert chosen.tolist() == assignment
    shares = [set((chosen == k).nonzero().flatten().tolist()) for k in range(router.num_students)]
    assert set().union(*shares) == set(range(len(assignment)))
    assert sum(len(share) for share in shares) == len(assignment)


@pytest.mark.parametrize("sets", [((0, 1), (1, 2)), ((0, 1), (3,)), ((0, 1), ()), ((1, 2), (3,))])
def test_sets_that_do_not_partition_the_classes_are_refused(sets: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        ClassRouter(sets)


@pytest.mark.parametrize("label", [-1, 5])
def test_a_class_of_nobody_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 4"):
        ClassRouter(HALVES).route(torch.tensor([0, label]))


def test_embeddings_go_to_the_nearest_centre_all_of_them_and_each_once() -> None:
    """T-MSD-1."""
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    router = NearestRouter(centres, key="text")
    embeddings = 4 * torch.randn(200, 2)
    chosen = router.route({"text": embeddings})
    distances = torch.stack([(embeddings - centre).norm(dim=1) for centre in centres])
    assert router.num_students == 3
    assert (distances.gather(0, chosen[None])[0] == distances.min(0).values).all()
    assert router.route({"text": centres}).tolist() == [0, 1, 2]


def test_labels_are_found_under_their_key_and_missed_elsewhere() -> None:
    assert torch.equal(ClassRouter(HALVES, key="label").route({"label": LABELS}), STUDENT_OF)
    with pytest.raises(ValueError, match="key=None"):
        ClassRouter(HALVES).route({"label": [0, 1]}["label"])


def test_conditions_of_an_unknown_kind_cannot_be_split_without_a_word() -> None:
    with pytest.raises(ValueError, match=r"ClassRouter\.select"):
        ClassRouter(HALVES).select("a red mug", torch.tensor([0]))


# --- the routed denoiser


def test_each_row_is_answered_by_its_own_student_in_its_own_place() -> None:
    student, x_t = two(), torch.randn(6, 3, dtype=torch.float64)
    answer = student(x_t, torch.rand(6, dtype=torch.float64), LABELS)
    expected = [x * (0.5, 0.25)[k] + (10.0, -10.0)[k] for x, k in zip(x_t, STUDENT_OF, strict=True)]
    torch.testing.assert_close(answer, torch.stack(expected))


def test_students_see_their_own_rows_of_every_part_of_the_condition() -> None:
    student = MultiStudent([Affine(), Affine()], ClassRouter(HALVES, key="label"))
    text = torch.randn(6, 2)
    condition = {"label": LABELS, "prompt": {"text": text}}
    student(torch.randn(6, 3, dtype=torch.float64), torch.rand(6), condition)
    for k, affine in enumerate(student.students):
        assert isinstance(affine, Affine)
        (seen,) = affine.seen
        assert isinstance(seen, dict)
        assert torch.equal(seen["label"], LABELS[STUDENT_OF == k])
        assert torch.equal(seen["prompt"]["text"], text[STUDENT_OF == k])


def test_a_student_without_a_row_is_not_called() -> None:
    student = two()
    student(torch.randn(2, 3, dtype=torch.float64), torch.rand(2), torch.tensor([0, 2])).sum().backward()
    assert student.students[1].seen == []
    assert gradients(student, 1) == [None, None]
    assert all(grad is not None for grad in gradients(student, 0))


def test_it_is_a_denoiser_that_shows_features_of_the_student_in_charge() -> None:
    student, x_t = two(), torch.randn(6, 3, dtype=torch.float64)
    assert isinstance(student, Denoiser)
    assert isinstance(student, FeatureDenoiser)
    found = student.features(x_t, torch.rand(6), LABELS)
    slopes = torch.tensor([0.5, 0.25], dtype=torch.float64)[STUDENT_OF]
    torch.testing.assert_close(found, (slopes[:, None] * x_t)[..., None])


class TokenRouter(Router):
    """Of packed samples: one label per token."""

    num_students = 2

    def route(self, condition: object) -> Tensor:
        assert isinstance(condition, Tensor)
        return condition


def test_packed_samples_are_routed_token_by_token() -> None:
    student = MultiStudent([Affine(0.5), Affine(0.25)], TokenRouter())
    x_t, of_token = torch.randn(5, 3, dtype=torch.float64), torch.tensor([1, 0, 0, 1, 0])
    answer = student(x_t, torch.rand(5), of_token)
    torch.testing.assert_close(
        answer, torch.tensor([0.5, 0.25], dtype=torch.float64)[of_token][:, None] * x_t
    )


def test_a_route_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="one for each row"):
        two()(torch.randn(4, 3, dtype=torch.float64), torch.rand(4), LABELS)


def test_students_must_be_as_many_as_the_router_knows_and_share_a_path() -> None:
    with pytest.raises(ValueError, match="num_students=2"):
        MultiStudent([Affine()], ClassRouter(HALVES))
    with pytest.raises(ValueError, match="one path"):
        MultiStudent([Affine(), Affine(path=VPPath())], ClassRouter(HALVES))


# --- any objective trains all of them


def loss_of(
    objective: Objective, student: Denoiser, critic: Denoiser, labels: Tensor, noise: Tensor
) -> Tensor:
    """The student's loss on one-step samples; ``noise`` and the loss's own belong to the rows."""
    x = FewStep((1.0,)).rollout(student, noise, labels)
    turn = Turn(
        sample=Sample(x=x, condition=labels),
        teacher=TEACHER,
        critic=critic,
        generator=torch.Generator().manual_seed(3),
    )
    return objective.student_loss(turn)[0]


OBJECTIVES = [DMD(), SiD()]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda it: type(it).__name__)


@every_objective
@pytest.mark.parametrize("absent", [0, 1])
def test_conditions_outside_its_set_give_a_student_no_gradient(objective: Objective, absent: int) -> None:
    """T-MSD-2."""
    student, labels = two(), torch.tensor(HALVES[1 - absent])
    noise = torch.randn(len(labels), 3, dtype=torch.float64)
    loss_of(objective, student, two(), labels, noise).backward()
    assert gradients(student, absent) == [None, None]
    assert all(grad is not None and grad != 0 for grad in gradients(student, 1 - absent))


@every_objective
def test_in_a_mixed_batch_a_students_gradient_is_that_of_its_own_rows(
    objective: Objective, known_turn: Callable[..., Turn]
) -> None:
    """T-MSD-2: whatever the other students and their samples are."""
    noise = torch.randn(6, 3, dtype=torch.float64)
    found = []
    for change in (1.0, 7.0):
        student, critic = two(), two()
        with torch.no_grad():
            for parameter in (*student.students[1].parameters(), *critic.students[1].parameters()):
                parameter *= change
        x = student(noise, torch.ones(6), LABELS)
        turn = known_turn(x, sample=Sample(x=x, condition=LABELS), teacher=TEACHER, critic=critic)
        objective.student_loss(turn)[0].backward()
        found.append((gradients(student, 0), gradients(student, 1)))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


@every_objective
def test_equal_students_are_together_the_single_one(
    objective: Objective, known_turn: Callable[..., Turn]
) -> None:
    """T-MSD-2: the loss is that of one student, and its gradient the sum of theirs."""
    noise = torch.randn(6, 3, dtype=torch.float64)
    alone, critic = Affine(0.5, 0.3), Affine(0.4, 0.1)
    students = MultiStudent([Affine(0.5, 0.3), Affine(0.5, 0.3)], ClassRouter(HALVES))
    critics = MultiStudent([Affine(0.4, 0.1), Affine(0.4, 0.1)], ClassRouter(HALVES))
    losses = []
    for student, judge in ((alone, critic), (students, critics)):
        x = student(noise, torch.ones(6), LABELS)
        turn = known_turn(x, sample=Sample(x=x, condition=LABELS), teacher=TEACHER, critic=judge)
        losses.append(objective.student_loss(turn)[0])
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    assert alone.slope.grad is not None
    of_two = [student.get_parameter("slope").grad for student in students.students]
    first, second = (grad for grad in of_two if grad is not None)
    assert first * second != 0
    torch.testing.assert_close(first + second, alone.slope.grad, rtol=1e-12, atol=0)


class LabelledGaussian(nn.Module):
    """The exact denoiser of N(-2, 0.5^2) for label 0 and N(2, 0.7^2) for label 1."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        assert isinstance(condition, Tensor)
        mean, std = (torch.tensor(pair)[condition][:, None] for pair in ((-2.0, 2.0), (0.5, 0.7)))
        return GaussianDenoiser(mean=mean, std=std)(x_t, t, None)


class OneGaussian(nn.Module):
    """The denoiser of one Gaussian that is learnt; at t = 1, where it would answer its mean, a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()
        self.mean = nn.Parameter(torch.tensor(0.0))
        self.std = nn.Parameter(torch.tensor(1.0))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        if bool((t == 1).all()):
            return self.mean + self.std * x_t
        return GaussianDenoiser(mean=self.mean, std=self.std)(x_t, t, None)


class TwoGaussians(Roles):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.critic = (
            MultiStudent([OneGaussian(), OneGaussian()], ClassRouter([[0], [1]])) for _ in range(2)
        )
        self.teacher = LabelledGaussian()

    def generate(self, batch: object, *, generator: torch.Generator, with_grad: bool) -> Sample:
        assert isinstance(batch, Tensor)
        noise = torch.randn(len(batch), 8, generator=generator)
        return Sample(x=FewStep((1.0,)).rollout(self.denoiser(self.student), noise, batch), condition=batch)


class Labels(Dataset[int]):
    def __len__(self) -> int:
        return 64 * 40

    def __getitem__(self, index: int) -> int:
        return index % 2


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_the_distiller_trains_all_students_at_once(tmp_path: Path) -> None:
    """Each finds the Gaussian of its own label, by one critic of its own each."""
    roles = TwoGaussians()
    distiller = Distiller(
        roles, DMD(), student_lr=0.2, critic_lr=0.3, critic_updates=1, weight_decay=0.0, decay_to=0.02
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=40,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(distiller, DataLoader(Labels(), batch_size=64))
    for networks in (roles.student, roles.critic):
        assert isinstance(networks, MultiStudent)
        means = [network.get_parameter("mean").item() for network in networks.students]
        assert means == pytest.approx([-2.0, 2.0], abs=0.3)
