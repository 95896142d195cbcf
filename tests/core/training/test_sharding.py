import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from fewstep.core.denoisers import Condition, NetworkFlowMap
from fewstep.core.training.sharding import blocks_of, data_mesh, shard_by_blocks, shard_by_layers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module.*returned a view"),
]


class Tower(nn.Module):
    """Two entries, and layers that both of them use."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._hidden(x))

    def features(self, x: Tensor) -> Tensor:
        return self._hidden(x)

    def _hidden(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        for block in self.blocks:
            x = x + block(x)
        return x


def test_blocks_are_the_members_of_the_outermost_lists() -> None:
    tower = Tower()
    assert blocks_of(nn.Sequential(tower)) == list(tower.blocks)
    assert blocks_of(nn.ModuleDict({"a": nn.ModuleList([tower]), "b": nn.Linear(1, 1)})) == [tower]
    assert blocks_of(nn.Linear(1, 1)) == []


def gradients(tower: Tower) -> dict[str, Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        tower.features(torch.randn(3, 4))
    (tower(torch.randn(3, 4)).square().mean() + tower.features(torch.randn(3, 4)).mean()).backward()
    found = {name: p.grad for name, p in tower.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}


def sharded(rank: int, tower: Tower) -> tuple[dict[str, Tensor], set[str]]:
    dist.init_process_group("gloo", rank=rank, world_size=2)
    shard_by_layers(tower, init_device_mesh("cpu", (2,)))
    kept = {name for name, p in tower.named_parameters() if not isinstance(p, DTensor)}
    return gradients(tower), kept


def test_layers_sharded_by_themselves_serve_every_entry(in_two_processes: Callable) -> None:
    tower = Tower()
    expected = gradients(tower)
    tower.zero_grad()
    for found, kept in in_two_processes(sharded, tower):
        assert kept == {"norm.weight", "norm.bias"}
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)


class Velocity(nn.Module):
    """A network of two times around the tower."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Tower()

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition, r: Tensor) -> Tensor:
        return self.tower(x_t) * (t - r)[:, None]


def jumps(flow_map: NetworkFlowMap) -> dict[str, Tensor]:
    torch.manual_seed(2)
    x_t, t = torch.randn(3, 4), torch.rand(3)
    velocity = flow_map.average_velocity(x_t, t, 0.5 * t, None)
    (flow_map(x_t, t, None) + velocity).square().mean().backward()
    found = {name: p.grad for name, p in flow_map.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}


def sharded_jumps(rank: int, flow_map: NetworkFlowMap) -> dict[str, Tensor]:
    dist.init_process_group("gloo", rank=rank, world_size=2)
    shard_by_blocks(flow_map, init_device_mesh("cpu", (2,)))
    return jumps(flow_map)


def test_a_flow_map_is_sharded_for_both_ways_to_call_it(in_two_processes: Callable) -> None:
    flow_map = NetworkFlowMap(Velocity())
    expected = jumps(copy.deepcopy(flow_map))
    for found in in_two_processes(sharded_jumps, flow_map):
        assert isinstance(found, dict)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)


def meshes(rank: int) -> tuple[int, str]:
    dist.init_process_group("gloo", rank=rank, world_size=2)
    names = ("data_parallel", "tensor_parallel")
    size = data_mesh(init_device_mesh("cpu", (2, 1), mesh_dim_names=names)).size()
    with pytest.raises(ValueError, match="tensor_parallel_size=2 is not supported") as error:
        data_mesh(init_device_mesh("cpu", (1, 2), mesh_dim_names=names))
    dist.barrier()  # the last mesh's groups are still being joined where the other process is slower
    return size, str(error.value)


def test_a_mesh_with_tensor_parallelism_is_refused_with_the_remedy(in_two_processes: Callable) -> None:
    for size, message in in_two_processes(meshes):
        assert size == 2
        assert "data_parallel_size=<number of processes> and tensor_parallel_size=1" in message
        assert "\n" not in message
