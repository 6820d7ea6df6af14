"""How the errors of different layers add up or cancel."""

from base64 import b64decode, b64encode
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

from mpq._support.json_object import quoted
from mpq.errors import FileFormatError, InputError
from mpq.problem.schema import check

_FACTOR = "factor_float32_base64"


@final
@dataclass(frozen=True, eq=False)
class Interactions:
    r"""The factor ``R`` whose Gram matrix says what pairs of layers lose beside their sum.

    .. math:: D(z) \approx \sum_\ell s_{\ell z_\ell} + (1 - \lambda) \, \tfrac{1}{2S} \sum_s
            \Bigl[\bigl(\sum_\ell R_{s \ell z_\ell}\bigr)^2
            - \sum_\ell R_{s \ell z_\ell}^2\Bigr]

    The first term is the additive loss of the ``Problem``'s table. What pairs of layers seem to do
    together is shrunk, because it is estimated from few examples.

    Args:
        factor: ``[S, L, B]``, finite; ``S`` probes (examples times probes), in the square root of
            the loss's unit. Kept as float32 and read-only.
        shrinkage: The share :math:`\lambda`, 0 to 1.

    Raises:
        InputError: If a shape does not fit, a value is not finite, or the share is no share.
    """

    factor: npt.NDArray[np.floating[Any]]
    shrinkage: float = 0.0

    def __post_init__(self) -> None:
        factor = _frozen(self.factor)
        if factor.ndim != 3 or not len(factor):
            raise InputError(f"interactions: expected a factor [S, L, B], got {factor.shape}")
        if not np.isfinite(factor).all():
            raise InputError("interactions: the factor has a value that is not finite")
        if not 0 <= self.shrinkage <= 1:
            raise InputError(f"interactions: a shrinkage is from 0 to 1, got {self.shrinkage}")
        object.__setattr__(self, "factor", factor)

    @cached_property
    def alone(self) -> npt.NDArray[np.float64]:
        """``[L, B]`` the quadratic loss of changing one layer alone."""
        # Summed in float64, like ``together``: ``excess`` is the difference of the two, which is
        # small beside either where errors hardly interact.
        squares = np.einsum("slb,slb->lb", self.factor, self.factor, dtype=np.float64)
        return np.asarray(0.5 * squares / len(self.factor))

    def together(self, columns: npt.NDArray[np.intp]) -> float:
        """The quadratic loss of an assignment, ``columns [L]`` the column of every layer."""
        layers = np.arange(self.factor.shape[1])
        # Layers are added up before squaring: here errors of opposite sign cancel.
        rows = self.factor[:, layers, columns].sum(axis=1, dtype=np.float64)  # [S]
        return float(0.5 * np.mean(rows**2))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: shape, and the factor as base64 of little-endian float32."""
        # The byte order is fixed, so that a file reads the same on every machine; bytes, since
        # decimal digits of so many numbers would be longer and no more exact.
        content = b64encode(self.factor.astype("<f4").tobytes()).decode("ascii")
        return {
            "shape": list(self.factor.shape),
            "shrinkage": self.shrinkage,
            _FACTOR: content,
        }

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Inverse of ``to_dict``.

        Raises:
            FileFormatError: If a key is missing, or the factor has another size.
        """
        check(data, "interactions", "factor of interactions")
        try:
            # Without ``validate`` foreign characters are skipped, which shifts all later numbers.
            content = b64decode(data[_FACTOR], validate=True)
        except ValueError as error:
            raise FileFormatError(f"not interactions: {_FACTOR} is no base64") from error
        # In Python's whole numbers, which do not overflow as numpy's do.
        expected = 4 * prod(map(int, data["shape"]))
        if len(content) != expected:
            raise FileFormatError(
                f"not interactions: {_FACTOR} has {len(content)} bytes; its shape "
                f"{quoted(data['shape'])} takes {quoted(expected)}"
            )
        factor = np.frombuffer(content, dtype="<f4").reshape(tuple(map(int, data["shape"])))
        return cls(factor, float(data["shrinkage"]))

    def excess(self, columns: npt.NDArray[np.intp]) -> float:
        """What an assignment loses beside its additive loss; negative where errors cancel."""
        # The table counts single layers already. Only what pairs add is shrunk.
        alone = float(self.alone[np.arange(len(columns)), columns].sum())
        return (1 - self.shrinkage) * (self.together(columns) - alone)


def _frozen(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    # float32 halves the largest array of a problem, in memory and in its file.
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused
        array = np.array(values, dtype=np.float32)
    array.setflags(write=False)
    return array
