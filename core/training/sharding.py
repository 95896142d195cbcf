"""FSDP2 for the networks of a distillation: parameters, gradients and averages spread over processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

ENTRIES = ("features", "average_velocity")  # what objectives call besides forward, where a network has it

SHARDED_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The repeated layers of a network: the members of its outermost ``nn.ModuleList``s."""
    blocks: list[nn.Module] = []
    for child in network.children():
        blocks += list(child) if isinstance(child, nn.ModuleList) else blocks_of(child)
    return blocks


def shard_by_blocks(network: nn.Module, mesh: DeviceMesh, *, entries: Sequence[str] = ENTRIES) -> None:
    """Spread each block's parameters over the mesh, then the rest as one more group.

    A group is gathered when its module is called and let go afterwards, the outermost too, which by default
    would stay: weights gathered on the other role's turn would know neither its step nor who trains now.
    The network must be entered through ``forward`` or a method named in ``entries``; where one of these
    calls another, that must be the last thing it does with the weights.

    Args:
        mesh: one-dimensional.
        entries: methods of ``network`` that are called from outside; those that it lacks are passed over.
    """
    for block in blocks_of(network):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    for name in _present(network, entries):
        register_fsdp_forward_method(network, name)


def shard_by_layers(network: nn.Module, mesh: DeviceMesh) -> None:
    """Spread each linear layer and convolution by itself, for networks that are entered in several places.

    What is left, norms and embeddings of a few numbers, stays whole on every process. More and shorter
    messages than ``shard_by_blocks``, none of them ahead of time.
    """
    for layer in list(network.modules()):
        if isinstance(layer, SHARDED_LAYERS):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Within the block the network's parameters are whole on every process, as for saving it.

    All processes must enter, and none may call the network; what is written to the parameters is lost.
    """
    sharded = [
        (part, name, parameter)
        for part in network.modules()
        for name, parameter in part.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    for part, name, parameter in sharded:
        part.register_parameter(name, nn.Parameter(parameter.full_tensor().detach(), requires_grad=False))
    try:
        yield
    finally:
        for part, name, parameter in sharded:
            part.register_parameter(name, cast(nn.Parameter, parameter))


def data_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The data-parallel part of Lightning's mesh, refused where the other part is more than one process."""
    tensor_size = mesh["tensor_parallel"].size()
    if tensor_size > 1:
        raise ValueError(
            f"tensor_parallel_size={tensor_size} is not supported; give ModelParallelStrategy "
            "data_parallel_size=<number of processes> and tensor_parallel_size=1"
        )
    return mesh["data_parallel"]


def _present(network: nn.Module, entries: Sequence[str]) -> Iterator[str]:
    return (name for name in entries if callable(getattr(network, name, None)))
