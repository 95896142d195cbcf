"""What Proteina's released networks look like: sizes, tensors and numbers, without the weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from fewstep.modalities.protein.networks.transformer import ProteinTransformerConfig
from fewstep.modalities.protein.released.sizes import SMALL_DIM, SMALL_FEATURES


@dataclass(frozen=True)
class Released:
    """A network of which weights were released.

    Args:
        versions: NVIDIA's names of the files.
        config: of the network.
        tensors: in its state dict.
        parameters: numbers in them, with the label tables of CATH that NVIDIA's classifiers have.
    """

    versions: tuple[str, ...]
    config: ProteinTransformerConfig
    tensors: int
    parameters: int


def _small(pair_update_every: int | None) -> ProteinTransformerConfig:
    return ProteinTransformerConfig(
        token_dim=SMALL_DIM,
        pair_dim=256,
        num_blocks=10,
        num_heads=8,
        sequence_features=SMALL_FEATURES,
        pair_update_every=pair_update_every,
    )


RELEASED: Mapping[str, Released] = {
    "60M_notri": Released(("v1.3",), _small(None), 335, 64_995_328),
    "60M_tri": Released((), _small(2), 544, 70_831_408),
    "200M_notri": Released(("v1.2", "v1.6"), ProteinTransformerConfig(), 490, 191_067_904),
    "200M_tri": Released(("v1.1", "v1.5"), ProteinTransformerConfig(pair_update_every=3), 699, 207_968_560),
    "400M_tri": Released(
        ("v1.4", "v1.8"),
        ProteinTransformerConfig(token_dim=1024, num_blocks=18, num_heads=16, pair_update_every=5),
        751,
        397_545_216,
    ),
}
