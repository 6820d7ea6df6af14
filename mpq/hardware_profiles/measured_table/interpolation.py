"""Between measured shapes: one formula per family of layers, fitted to the measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self, final

import numpy as np
import numpy.typing as npt

from mpq.hardware_profiles.measured_table.entry import Entry
from mpq.hardware_profiles.measured_table.shape import Shape

MIN_ENTRIES: Final = 8
"""Measured shapes that a family needs: twice as many as the formula has coefficients."""
FEATURES: Final = ("MACs", "elements of the weight", "elements read and written")


@final
@dataclass(frozen=True, eq=False)
class ShapeRule:
    r"""What a call costs, by its size.

    .. math:: t = t_0 + a \cdot \text{MACs} + b \cdot \text{weights} + c \cdot \text{activations}

    with four coefficients of at least 0 that minimise the sum of squared *relative* errors over
    the measured shapes: non-negative least squares, Lawson and Hanson (1974), Solving Least Squares
    Problems. A larger layer never costs less. A layer whose sizes suit the hardware badly is
    priced like its neighbours. At one format, weights are bytes up to a factor.

    Args:
        coefficients: ``[4]``: per call, per MAC, per weight, per number read or written.
        low: ``[3]`` least measured MACs, weights, activations of one example.
        high: ``[3]`` largest measured ones.
    """

    coefficients: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, features: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> Self:
        """To ``[M, 3]`` features and ``[M]`` positive values."""
        from scipy.optimize import nnls  # takes longer to import than most tables need

        # Rows divided by their value, against a column of ones: least squares of these are of
        # relative errors, so that small layers count as much as large ones.
        relative = np.column_stack([np.ones(len(values)), features]) / values[:, None]
        scale = relative.max(axis=0)
        scale[scale == 0] = 1.0  # MACs of embeddings
        found, _ = nnls(relative / scale, np.ones(len(values)))
        return cls(found / scale, features.min(axis=0), features.max(axis=0))

    def predict(self, shape: Shape) -> float:
        """Cost of one call, in the unit of the values."""
        return float(self.coefficients @ np.array([1.0, *shape.features]))

    def outside(self, shape: Shape) -> tuple[str, ...]:
        """Which sizes lie outside what was measured, in words; none: the rule interpolates."""
        sizes = zip(FEATURES, shape.features, self.low, self.high, strict=True)
        return tuple(
            f"{name} ({size:.6g}) outside {low:.6g} to {high:.6g}"
            for name, size, low, high in sizes
            if not low <= size <= high
        )


@final
@dataclass(frozen=True, eq=False)
class Family:
    """Measurements that share a rule: of one kind, kernel, grouping, precision and batch size.

    Args:
        entries: ``M`` measurements.
        resource: What the rule is fitted to: ``latency`` or ``energy``.
    """

    entries: Sequence[Entry]
    resource: str

    @cached_property
    def features(self) -> npt.NDArray[np.float64]:
        """``[M, 3]`` sizes."""
        return np.array([entry.shape.features for entry in self.entries], dtype=np.float64)

    @cached_property
    def values(self) -> npt.NDArray[np.float64]:
        """``[M]`` seconds or joules."""
        return np.array([entry.value(self.resource) for entry in self.entries])

    @cached_property
    def rule(self) -> ShapeRule:
        """Fitted to all of them."""
        return ShapeRule.fit(self.features, self.values)

    @cached_property
    def left_out_errors(self) -> npt.NDArray[np.float64]:
        """``[M]`` relative errors, ``predicted / measured - 1``, each by the rule of the others."""
        errors = []
        # Fitted anew each time: non-negative least squares have no closed form for leaving one out.
        for place, entry in enumerate(self.entries):
            others = np.arange(len(self.entries)) != place
            rule = ShapeRule.fit(self.features[others], self.values[others])
            errors.append(rule.predict(entry.shape) / self.values[place] - 1)
        return np.array(errors)

    @cached_property
    def relative_half_width(self) -> float:
        """What 95 % of the left-out errors stay below."""
        # The next error up, and not between two: of few errors, interpolated quantiles are too low.
        return float(np.quantile(np.abs(self.left_out_errors), 0.95, method="higher"))
