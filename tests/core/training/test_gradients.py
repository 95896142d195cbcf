from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from fewstep.core.training import gradients
from fewstep.core.training.gradients import average_gradients, clip_gradients, share_buffers, withheld

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def parameters_of(rank: int) -> list[nn.Parameter]:
    """What both processes used, what the second alone did, what none did, and another dtype."""
    both, second, neither = (nn.Parameter(torch.zeros(size)) for size in (3, 2, 2))
    double = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    both.grad = torch.tensor([1.0, 2.0, 3.0]) * (rank + 1)
    second.grad = torch.tensor([4.0, 8.0]) if rank == 1 else None
    double.grad = torch.full((2, 2), float(rank), dtype=torch.float64)
    return [both, second, neither, double]


def averaged(rank: int, bucket: int) -> list[Tensor | None]:
    gradients.BUCKET_ELEMENTS = bucket
    dist.init_process_group("gloo", rank=rank, world_size=2)
    parameters = parameters_of(rank)
    average_gradients(parameters)
    return [p.grad for p in parameters]


@pytest.mark.parametrize("bucket", [1, 4, 2**20])
def test_gradients_are_averaged_over_processes_where_any_has_one(
    bucket: int, in_two_processes: Callable
) -> None:
    for both, second, neither, double in in_two_processes(averaged, bucket):
        assert both.tolist() == [1.5, 3.0, 4.5]
        assert second.tolist() == [2.0, 4.0]
        assert neither is None
        assert double.dtype == torch.float64
        assert double.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def shared(rank: int) -> dict[str, Tensor]:
    dist.init_process_group("gloo", rank=rank, world_size=2)
    module = nn.BatchNorm1d(2)
    module.register_buffer("scratch", torch.full((1,), float(rank)), persistent=False)
    module.get_buffer("running_mean").fill_(float(rank + 1))
    share_buffers(module)
    return dict(module.named_buffers())


def test_persistent_buffers_are_those_of_the_first_process(in_two_processes: Callable) -> None:
    first, second = in_two_processes(shared)
    assert second["running_mean"].tolist() == first["running_mean"].tolist() == [1.0, 1.0]
    assert [float(buffers["scratch"]) for buffers in (first, second)] == [0.0, 1.0]


def test_alone_gradients_and_buffers_stay_as_they_are() -> None:
    parameters = parameters_of(1)
    average_gradients(parameters)
    share_buffers(nn.BatchNorm1d(2))
    assert torch.equal(torch.as_tensor(parameters[0].grad), torch.tensor([2.0, 4.0, 6.0]))
    assert parameters[2].grad is None


def test_clipping_scales_all_gradients_to_the_limit_together() -> None:
    parameters = [nn.Parameter(torch.zeros(n)) for n in (1, 1, 1)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([-4.0])
    assert float(clip_gradients(parameters, 10.0)) == 5.0
    assert float(torch.as_tensor(parameters[0].grad)) == 3.0
    assert float(clip_gradients(parameters, 1.0)) == 5.0
    assert float(torch.as_tensor(parameters[0].grad)) == pytest.approx(0.6, abs=1e-6)
    assert float(torch.as_tensor(parameters[1].grad)) == pytest.approx(-0.8, abs=1e-6)
    assert float(clip_gradients(parameters[2:], 1.0)) == 0.0


def test_withheld_parameters_get_nothing_but_let_the_gradient_through() -> None:
    layer, x = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    with withheld(list(layer.parameters())):
        layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    with pytest.raises(ZeroDivisionError), withheld(list(layer.parameters())):
        _ = 1 / 0
    assert layer.weight.requires_grad
