"""How the errors of different layers add up or cancel."""

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from mpq.errors import InputError


@final
@dataclass(frozen=True, eq=False)
class Interactions:
    """The factor ``R`` whose Gram matrix is the quadratic loss of an assignment.

    .. math:: KL(z) \\approx \\tfrac{1}{2S} \\sum_s \\bigl(\\sum_\\ell R_{s \\ell z_\\ell}\\bigr)^2

    Args:
        factor: ``[S, L, B]``, finite; ``S`` probes (examples times probes), in sqrt(nats). Kept as
            float32 and read-only.

    Raises:
        InputError: If the factor has another rank, no probe, or a value that is not finite.
    """

    factor: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused below
            factor = np.array(self.factor, dtype=np.float32)
        if factor.ndim != 3 or not len(factor):
            raise InputError(f"interactions: expected a factor [S, L, B], got {factor.shape}")
        if not np.isfinite(factor).all():
            raise InputError("interactions: the factor has a value that is not finite")
        factor.setflags(write=False)
        object.__setattr__(self, "factor", factor)

    def loss(self, choice: npt.NDArray[np.intp]) -> float:
        """Predicted loss in nats.

        Args:
            choice: ``[L]`` column of every layer.
        """
        layers = np.arange(self.factor.shape[1])
        rows = self.factor[:, layers, choice].sum(axis=1, dtype=np.float64)  # [S]
        return float(0.5 * np.mean(rows**2))
