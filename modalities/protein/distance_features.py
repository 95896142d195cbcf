"""Features of a CA chain that compare sets of chains without a trained network."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from fewstep.modalities.protein.chains import Chain

GAPS = (2, 3, 4, 5, 6, 8, 11, 15, 20, 27)
SHORTEST = GAPS[-1] + 2


def distance_features(chains: Sequence[Chain]) -> Float[np.ndarray, " chain feature"]:
    """Mean and standard deviation over each chain of the distances of residues so many places apart.

    In units of that number of bonds to the power 0.6, a random coil's growth, so that near and far ones weigh
    alike. Helices, strands, compactness and repeats all move them; mirror images do not.

    Raises:
        ValueError: for a chain shorter than `SHORTEST`.
    """
    rows = []
    for chain in chains:
        if len(chain) < SHORTEST:
            raise ValueError(f"a chain has {len(chain)} residues; distances need at least {SHORTEST}")
        row = []
        for gap in GAPS:
            distances = np.linalg.norm(chain[gap:] - chain[:-gap], axis=1) / gap**0.6
            row += [distances.mean(), distances.std()]
        rows.append(row)
    return np.array(rows)
