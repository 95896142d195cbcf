"""What a network is told beside coordinates: the time, the place in the chain, the class of the fold."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

TIME_SCALE = 2000.0  # Proteina embeds 2000 t, with wavelengths up to the same number
LONGEST_CHAIN = 2056.0  # of the index embedding's wavelengths
LEVELS = ("C", "A", "T")  # class, architecture, topology: the levels of CATH that Proteina knows


def time_embedding(time: Float[Tensor, " batch"], dim: int) -> Float[Tensor, " batch dim"]:
    """Sines, then cosines, of Proteina's time (0 is noise); float32 or better."""
    precise = time.to(torch.promote_types(time.dtype, torch.float32))
    half = dim // 2
    places = torch.arange(half, dtype=precise.dtype, device=time.device)
    frequencies = torch.exp(-math.log(TIME_SCALE) / (half - 1) * places)
    angles = TIME_SCALE * precise[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def index_embedding(residues: int, dim: int, device: torch.device) -> Float[Tensor, " residue dim"]:
    """Sines, then cosines, of the place in the chain, which starts at 1; float32."""
    places = torch.arange(1, residues + 1, dtype=torch.float32, device=device)
    exponents = 2 * torch.arange(dim // 2, dtype=torch.float32, device=device) / dim
    angles = places[:, None] * math.pi / LONGEST_CHAIN**exponents
    return torch.cat([angles.sin(), angles.cos()], 1)


class FoldEmbedding(nn.Module):
    """One row per class of each level of CATH; the last row of a table stands for an unknown class."""

    def __init__(self, fold_classes: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        self.fold_classes = fold_classes
        self.embedding_C = nn.Embedding(fold_classes[0] + 1, dim)
        self.embedding_A = nn.Embedding(fold_classes[1] + 1, dim)
        self.embedding_T = nn.Embedding(fold_classes[2] + 1, dim)

    def forward(self, labels: Int[Tensor, " batch 3"]) -> Float[Tensor, " batch dim"]:
        tables = (self.embedding_C, self.embedding_A, self.embedding_T)
        return torch.cat([table(labels[:, level]) for level, table in enumerate(tables)], 1)

    def unknown(self, batch_size: int, device: torch.device) -> Int[Tensor, " batch 3"]:
        """The labels of chains whose fold is not told."""
        return torch.tensor(self.fold_classes, device=device).expand(batch_size, 3)
