from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.layouts import DENSE, Layout, Masked, Packed
from fewstep.core.objectives.contract import Need, Objective, Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.schedules import UniformTimes
from fewstep.core.training.probes import (
    BinnedTurn,
    Prober,
    coverage,
    lasting_error,
    real_values,
    sketch,
    spread,
)
from fewstep.core.training.roles import Roles

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


def test_coverage_is_the_share_of_neighbourhoods_that_are_reached() -> None:
    reference = torch.cat([torch.randn(200, 2), torch.randn(200, 2) + 20])
    assert coverage(reference, reference + 1e-6) == 1.0
    assert 0.93 < coverage(reference, torch.cat([torch.randn(200, 2), torch.randn(200, 2) + 20])) <= 1.0
    assert 0.4 < coverage(reference, torch.randn(400, 2)) <= 0.5
    assert coverage(reference, torch.randn(400, 2) - 50) == 0.0
    assert coverage(reference, torch.zeros(400, 2)) < 0.1


def test_spread_is_the_mean_distance_of_two() -> None:
    assert spread(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])) == pytest.approx(10 / 3)


def test_a_sketch_keeps_distances_and_small_samples_as_they_are() -> None:
    assert torch.equal(sketch(torch.arange(6.0).view(2, 3), 0), torch.arange(6.0).view(2, 3))
    x = torch.randn(20, 3, 16, 17)
    small = sketch(x, 0)
    assert small.shape == (20, 64)
    ratios = torch.pdist(small) / torch.pdist(x.flatten(1))
    assert abs(float(ratios.mean()) - 1) < 0.05
    assert float(ratios.std()) < 0.15  # sqrt(1 / (2 * 64)) in theory
    assert torch.equal(sketch(x[:4], 0), small[:4])
    assert not torch.equal(sketch(x, 1), small)


def test_padding_is_not_among_the_values() -> None:
    x = torch.arange(8.0).view(2, 2, 2)
    mask = torch.tensor([[True, False], [True, True]])
    assert real_values(x, Masked(mask), 100).tolist() == [0.0, 1.0, 4.0, 5.0, 6.0, 7.0]
    assert len(real_values(torch.randn(1000), DENSE, 100)) == 100


LAYOUTS: dict[str, tuple[Layout, tuple[int, ...]]] = {
    "dense": (DENSE, (4000, 3)),
    "masked": (Masked(torch.rand(4000, 3) < 2.0), (4000, 3)),
    "packed": (Packed(torch.arange(4000).repeat_interleave(3), 4000), (12000, 1)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_exact_critics_error_averages_out_and_a_late_ones_does_not(layout: str) -> None:
    """x0 = a + noise, x_t = x0 + noise: the exact E[x0 | x_t] against that of another mean or spread."""
    where, shape = LAYOUTS[layout]
    x0 = torch.randn(shape)
    x_t = x0 + torch.randn(shape)
    exact = 0.5 * x_t
    assert abs(lasting_error(x0 - exact, x_t, where)) < 2e-3  # 1 / 2000 by 2 moments
    assert lasting_error(x0 - (exact + 0.3), x_t, where) == pytest.approx(0.09, abs=0.02)
    narrow = 0.2 * x_t  # the posterior of half the spread: 0.25 / 1.25
    assert lasting_error(x0 - narrow, x_t, where) == pytest.approx((0.3 * 2.0 / 2**0.5) ** 2, rel=0.2)


def test_a_bin_holds_its_part_of_the_objectives_times() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(400, 1)
    parts = [
        BinnedTurn(bin=part, bins=4, generator=generator).times(UniformTimes(low=0.0, high=1.0), x, DENSE)
        for part in range(4)
    ]
    for part, times in enumerate(parts):
        assert times.shape == (400,)
        assert abs(float(times.mean()) - (part + 0.5) / 4) < 0.02
        assert part / 4 - 0.02 < float(times.min()) < float(times.max()) < (part + 1) / 4 + 0.02


class ByTime(Objective):
    """A gradient in proportion to the fourth power of the time; it counts in a buffer and draws at will."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"teacher", "critic", "sample"})

    def student_loss(self, turn: Turn) -> tuple[Tensor, dict[str, Tensor]]:
        assert turn.sample is not None
        t = turn.times(UniformTimes(low=0.0, high=1.0), turn.sample.x, turn.sample.layout)
        return (t[:, None].pow(4) * turn.sample.x).mean() + 0 * torch.rand(()), {}

    def critic_loss(self, turn: Turn) -> tuple[Tensor, dict[str, Tensor]]:
        return DMD().critic_loss(turn)


def test_the_gradient_is_shared_among_the_times(make_distiller: Callable) -> None:
    distiller = make_distiller(objective=ByTime())
    prober = Prober(seed=0, bins=2, teacher_steps=4)
    early, late = prober.gradient_shares(distiller, torch.zeros(512, 1), 0)
    assert early + late == pytest.approx(1.0)
    assert early / late == pytest.approx(0.5**5 / (1 - 0.5**5), rel=0.4)
    assert all(p.grad is None for p in distiller.parameters())
    assert Prober(seed=0, bins=0, teacher_steps=4).gradient_shares(distiller, torch.zeros(8, 1), 0) == []


def test_the_reference_is_real_where_the_roles_give_data_and_else_the_teachers(
    make_distiller: Callable, data_roles: Callable
) -> None:
    prober = Prober(seed=0, bins=0, teacher_steps=32)
    batch = torch.arange(2048.0)[:, None]
    for distiller, std in ((make_distiller(), 0.7), (make_distiller(data_roles()), 0.7 / 2**0.5)):
        sample = prober.sample(distiller, batch, 0)
        assert sample is not None
        reference = prober.reference(distiller, batch, sample, 0)
        assert reference is not None
        assert float(reference.x0.mean()) == pytest.approx(1.3, abs=0.06)
        assert float(reference.x0.std()) == pytest.approx(std, abs=0.04)


def test_the_critics_direction_is_true_in_so_far_as_it_is_where_the_student_is(
    make_distiller: Callable, roles_with_dropout: Callable
) -> None:
    """Student N(0.4, 1.1), teacher N(1.3, 0.7), and a critic that is exact, or still at a mean of -0.5."""
    prober, batch = Prober(seed=0, bins=0, teacher_steps=4), torch.zeros(20_000, 1)
    found = {}
    for mean in (0.4, -0.5):
        distiller = make_distiller(roles_with_dropout())
        distiller.roles.critic.network.mean.data.fill_(mean)
        sample = prober.sample(distiller, batch, 0)
        assert sample is not None
        sums = prober.critic(distiller, sample, 0)
        assert sums is not None
        found[mean] = sums["true"] / sums["given"], sums["lasting"]
    assert found[0.4] == (pytest.approx(1.0, abs=0.1), pytest.approx(0.0, abs=0.01))
    assert found[-0.5][0] < 0.75
    assert found[-0.5][1] > 0.1


class Counting(nn.Module, DMD):
    """A DMD with a buffer that every loss moves."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        DMD.__init__(self)
        self.register_buffer("seen", torch.zeros(()))

    def student_loss(self, turn: Turn) -> tuple[Tensor, dict[str, Tensor]]:
        self.get_buffer("seen").add_(1)
        return super().student_loss(turn)


class Silent(Roles):
    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(1, 1)


def test_roles_without_samples_have_none_to_measure(make_distiller: Callable) -> None:
    class Nothing(Objective):
        @property
        def needs(self) -> frozenset[Need]:
            return frozenset()

        def student_loss(self, turn: Turn) -> tuple[Tensor, dict[str, Tensor]]:
            return torch.zeros(()), {}

    distiller = make_distiller(Silent(), Nothing())
    assert Prober(seed=0, bins=2, teacher_steps=4).sample(distiller, None, 0) is None


def test_measuring_without_a_critic_says_nothing_of_one(
    make_distiller: Callable, data_roles: Callable
) -> None:
    distiller = make_distiller(data_roles())
    distiller.roles.critic = None
    sample = Sample(x=torch.zeros(4, 1))
    assert Prober(seed=0, bins=2, teacher_steps=4).critic(distiller, sample, 0) is None
