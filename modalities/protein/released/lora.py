"""Low-rank updates (Hu et al., 2022) beside the weights that they were trained on, as loralib saves them."""

from collections.abc import Mapping

import torch
from torch import Tensor

A, B, WEIGHT = "lora_A", "lora_B", "weight"


def merged(state: Mapping[str, Tensor], alpha: float, where: str) -> dict[str, Tensor]:
    r"""The weights with their updates, :math:`W + \frac{\alpha}{r} B A`, and no others.

    loralib's embeddings look rows up, and so keep :math:`A` and :math:`B` for the transposed weight.

    Raises:
        ValueError: an update without its weight or its other half, or of another shape.
    """
    bases = {name.rpartition(".")[0] for name in state if name.rpartition(".")[2] in (A, B)}
    plain = {name: value for name, value in state.items() if name.rpartition(".")[2] not in (A, B)}
    for base in sorted(bases):
        missing = [part for part in (WEIGHT, A, B) if f"{base}.{part}" not in state]
        if missing:
            raise ValueError(f"{where}: the low-rank update of {base} lacks {', '.join(missing)}")
        weight, a, b = (state[f"{base}.{part}"] for part in (WEIGHT, A, B))
        embedding = base.rpartition(".")[2].startswith("embedding_")
        expected = (weight.shape[0], weight.shape[1]) if embedding else (weight.shape[1], weight.shape[0])
        if a.shape[0] != b.shape[1] or (a.shape[1], b.shape[0]) != expected:
            raise ValueError(
                f"{where}: {base} is {list(weight.shape)}, which an update of {list(b.shape)} by "
                f"{list(a.shape)} does not fit"
            )
        update = b.to(torch.float64) @ a.to(torch.float64)
        change = alpha / a.shape[0] * (update.mT if embedding else update)
        plain[f"{base}.{WEIGHT}"] = (weight.to(torch.float64) + change).to(weight.dtype)
    return plain
