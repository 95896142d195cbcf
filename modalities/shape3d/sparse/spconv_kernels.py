"""Submanifold convolutions by spconv's kernels (traveller59/spconv, 2.x), on the parameters that we have.

spconv is never required and never installed along; where it works on a GPU it is taken, elsewhere a table of
neighbours and a product of matrices are.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from fewstep.core.attention import PROBE_FAILURES
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor, Voxels

if TYPE_CHECKING:
    from fewstep.modalities.shape3d.sparse.convolution import Kernel

DTYPES = (torch.float32, torch.float16)  # released wheels have no kernels for bfloat16

_reasons: dict[torch.device, str | None] = {}
_layers: "WeakKeyDictionary[Kernel, Any]" = WeakKeyDictionary()
_pairs: "WeakKeyDictionary[Voxels, dict[str, Any]]" = WeakKeyDictionary()


def takes(feats: Tensor) -> bool:
    """Whether a convolution of these features goes to spconv."""
    return (
        feats.device.type == "cuda"
        and feats.dtype in DTYPES
        and not torch.is_autocast_enabled("cuda")
        and not torch.compiler.is_compiling()
        and forward_ad._current_level < 0  # the kernels have no forward-mode derivatives
        and reason_against(feats.device) is None
    )


def reason_against(device: torch.device | str) -> str | None:
    """Convolve a few voxels: None where that works on a device, otherwise one line; tried once for each."""
    key = torch.device(device)
    if key not in _reasons:
        _reasons[key] = _probe(key)
    return _reasons[key]


def by_spconv(kernel: "Kernel", x: SparseTensor) -> Float[Tensor, " voxel out"]:
    """The products of 3 x 3 x 3 weights and features, without the bias.

    Which voxels meet is found once for all layers on the same voxels.
    """
    spconv: Any = importlib.import_module("spconv.pytorch")
    weight = kernel.weight
    layer = _layers.get(kernel)
    if layer is None:
        with torch.device("meta"):
            layer = spconv.SubMConv3d(weight.shape[-1], weight.shape[0], weight.shape[1], bias=False)
        _layers[kernel] = layer
    layer.weight = weight
    layer.training = torch.is_grad_enabled()
    layer.indice_key = "trained" if layer.training else "plain"  # the former keeps more, for its gradient
    given = spconv.SparseConvTensor(
        x.feats,
        x.coords.contiguous(),  # spconv reads memory and not strides
        [x.resolution] * 3,
        x.batch_size,
        indice_dict=_pairs.setdefault(x.voxels, {}),
    )
    return layer(given).features


def _probe(device: torch.device) -> str | None:
    from fewstep.modalities.shape3d.sparse.convolution import Kernel

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            coords = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.int32, device=device)
            x = SparseTensor(torch.ones(2, 8, device=device), Voxels(coords, 1, 4))
            by_spconv(Kernel(8, 8, 3).to(device), x).sum().item()
    except PROBE_FAILURES as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return None
