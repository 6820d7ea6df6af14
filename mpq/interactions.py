"""How the errors of different layers add up or cancel."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from mpq.errors import InputError


@final
@dataclass(frozen=True, eq=False)
class Interactions:
    r"""The factor ``R`` whose Gram matrix is the quadratic loss of an assignment.

    .. math:: D(z) \approx (1 - \lambda) \, \tfrac{1}{2S} \sum_s
            \bigl(c_s + \sum_\ell R_{s \ell z_\ell}\bigr)^2 + \lambda \sum_\ell s_{\ell z_\ell}

    The second term is the additive loss of the ``Problem``'s table: what pairs of layers seem to do
    together is shrunk, because it is estimated from few examples.

    Args:
        factor: ``[S, L, B]``, finite; ``S`` probes (examples times probes), in the square root of
            the loss's unit. Kept as float32 and read-only.
        offset: ``[S]`` what is lost whatever is chosen, ``c``; ``None``: 0.
        shrinkage: The share :math:`\lambda`, 0 to 1.

    Raises:
        InputError: If a shape does not fit, a value is not finite, or the share is no share.
    """

    factor: npt.NDArray[np.floating[Any]]
    offset: npt.NDArray[np.floating[Any]] | None = None
    shrinkage: float = 0.0

    def __post_init__(self) -> None:
        factor = _frozen(self.factor)
        if factor.ndim != 3 or not len(factor):
            raise InputError(f"interactions: expected a factor [S, L, B], got {factor.shape}")
        offset = _frozen(np.zeros(len(factor)) if self.offset is None else self.offset)
        if offset.shape != factor.shape[:1]:
            raise InputError(f"interactions: {factor.shape[0]} probes, offset {offset.shape}")
        if not (np.isfinite(factor).all() and np.isfinite(offset).all()):
            raise InputError("interactions: the factor has a value that is not finite")
        if not 0 <= self.shrinkage <= 1:
            raise InputError(f"interactions: a shrinkage is from 0 to 1, got {self.shrinkage}")
        object.__setattr__(self, "factor", factor)
        object.__setattr__(self, "offset", offset)

    def loss(self, choice: npt.NDArray[np.intp], additive: float = 0.0) -> float:
        """Predicted loss.

        Args:
            choice: ``[L]`` column of every layer.
            additive: Its loss by the additive table.
        """
        assert self.offset is not None
        layers = np.arange(self.factor.shape[1])
        rows = self.factor[:, layers, choice].sum(axis=1, dtype=np.float64) + self.offset  # [S]
        quadratic = 0.5 * np.mean(rows**2)
        return float((1 - self.shrinkage) * quadratic + self.shrinkage * additive)


def _frozen(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused
        array = np.array(values, dtype=np.float32)
    array.setflags(write=False)
    return array
