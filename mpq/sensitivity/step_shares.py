"""Which steps of a diffusion a price comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np

from mpq._support.arrays import Array
from mpq._support.json_arrays import decoded, encoded


@final
@dataclass(frozen=True, eq=False)
class StepShares:
    """How prices are made up of what is lost at the steps of each cluster.

    Args:
        values: ``[L, B, T]`` share of each price, at least 0; over ``T`` they sum to 1.
        examples: ``[T]`` share of the examples that are in each cluster, above 0; sums to 1.
    """

    values: Array
    examples: Array

    @classmethod
    def of(cls, sums: Array, counts: Array) -> Self:
        """From what was summed.

        Args:
            sums: ``[L, B, T]`` over the examples of each cluster; where nothing is lost at all, the
                shares are those of the examples.
            counts: ``[T]`` examples.
        """
        examples = counts / counts.sum()
        total = sums.sum(axis=2, keepdims=True)
        shares = np.divide(sums, total, out=np.zeros_like(sums), where=total > 0)
        return cls(np.where(total > 0, shares, examples), examples)

    def losses(self, prices: Array) -> Array:
        """``[L, B, T]`` mean loss over the examples of each cluster.

        Weighted by ``examples``, they add up to the price.

        Args:
            prices: ``[L, B]`` mean losses over all examples.
        """
        found: Array = prices[:, :, None] * self.values / self.examples
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, to the last bit."""
        return {"values": encoded(self.values), "examples": self.examples.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Self | None:
        """Inverse of ``to_dict``, of an object that fits the schema."""
        if data is None:
            return None
        return cls(decoded(data["values"]), np.array(data["examples"], dtype=np.float64))
