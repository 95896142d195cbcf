"""Gaussians (Kerbl et al., 3D Gaussian Splatting, 2023), and the PLY files that their viewers read."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from torch import Tensor

CONSTANT_HARMONIC = 0.5 / np.sqrt(np.pi)  # the spherical harmonic of degree 0
TURN = (np.sqrt(0.5), np.sqrt(0.5), 0.0, 0.0)  # a quarter turn about x: up (z) to what viewers call up (-y)
FEWEST_OPACITY = 1e-6  # the files hold logits
PROPERTIES = (
    *("x", "y", "z", "nx", "ny", "nz"),
    *(f"f_dc_{channel}" for channel in range(3)),
    "opacity",
    *(f"scale_{axis}" for axis in range(3)),
    *(f"rot_{part}" for part in range(4)),
)

Rows3 = Float32[np.ndarray, " gaussian 3"]
Rows4 = Float32[np.ndarray, " gaussian 4"]


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Coloured ellipsoids, z up.

    Args:
        centres: in [-0.5, 0.5]^3.
        scales: standard deviations along their own axes, in the same unit.
        rotations: quaternions, w first, of length 1, from their own axes to the world's.
        opacities: from 0 to 1.
        harmonics: coefficients of degree 0, red, green, blue.
    """

    centres: Rows3
    scales: Rows3
    rotations: Rows4
    opacities: Float32[np.ndarray, " gaussian"]
    harmonics: Rows3

    def __post_init__(self) -> None:
        if len(self.scales) and not float(self.scales.min()) > 0:
            raise ValueError(f"scales reach {float(self.scales.min())}; they must be positive")
        if len(self.opacities) and not 0 <= float(self.opacities.min()) <= float(self.opacities.max()) <= 1:
            raise ValueError(
                f"opacities reach from {float(self.opacities.min())} to {float(self.opacities.max())}; "
                "give them from 0 to 1, not as logits"
            )

    @classmethod
    def of(cls, decoded: Mapping[str, Tensor]) -> "Gaussians":
        """One sample of what ``GaussianDecoder.gaussians`` returns."""
        arrays = {name: values.detach().cpu().float().numpy() for name, values in decoded.items()}
        return cls(
            centres=arrays["xyz"],
            scales=arrays["scale"],
            rotations=arrays["rotation"],
            opacities=arrays["opacity"][:, 0],
            harmonics=arrays["colour"],
        )

    @property
    def colours(self) -> Rows3:
        """sRGB, from 0 to 1."""
        return np.clip(0.5 + CONSTANT_HARMONIC * self.harmonics, 0, 1).astype(np.float32)


def write_gaussians(path: Path, gaussians: Gaussians) -> None:
    """Write a binary PLY with logarithms of scales and logits of opacities, at once when it is complete.

    Its y axis points down, as viewers of such files expect and as TRELLIS writes it: (x, -z, y).

    Raises:
        ValueError: for another ending than .ply, or where there are no Gaussians.
    """
    if path.suffix.lower() != ".ply":
        raise ValueError(f"{path.name} must end in .ply")
    count = len(gaussians.centres)
    if not count:
        raise ValueError(f"{path.name}: there are no Gaussians; there is nothing to write")
    x, y, z = gaussians.centres.T
    opacity = np.clip(gaussians.opacities.astype(np.float64), FEWEST_OPACITY, 1 - FEWEST_OPACITY)
    rows = np.concatenate(
        [
            np.stack([x, -z, y], axis=1),
            np.zeros((count, 3)),
            gaussians.harmonics,
            (np.log(opacity) - np.log1p(-opacity))[:, None],
            np.log(gaussians.scales.astype(np.float64)),
            quaternion_product(np.array(TURN), gaussians.rotations.astype(np.float64)),
        ],
        axis=1,
    ).astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    header += [f"property float {name}" for name in PROPERTIES] + ["end_header", ""]
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part.ply")
    try:
        part.write_bytes("\n".join(header).encode() + rows.tobytes())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def quaternion_product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The rotation ``second`` and then ``first``; quaternions ``[..., 4]``, w first."""
    w, x, y, z = np.moveaxis(first, -1, 0)
    a, b, c, d = np.moveaxis(second, -1, 0)
    return np.stack(
        [
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ],
        axis=-1,
    )
