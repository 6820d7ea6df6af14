"""What two layers cost together, beside what each costs alone."""

from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

from mpq.errors import FileFormatError, InputError


@final
@dataclass(frozen=True, eq=False)
class PairCost:
    """What two layers cost together: converting the output of one to the format of the next.

    Its unit and precisions are those of the ``CostTable`` that it is in. Several pairs of the same
    two layers add up. Negative where running both in one format saves something, as fused
    operations do. A pair of precisions that cannot run side by side has no number: restrict the
    candidates instead.

    Args:
        first: Name of a layer.
        second: Name of another layer.
        values: ``[B, B]``, finite: the cost of ``first`` at precision row ``b`` and ``second`` at
            precision column ``c``. Copied, and read-only afterwards.

    Raises:
        InputError: If both are one layer, the shape is not square, or a value is not finite.
    """

    first: str
    second: str
    values: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        pair = f"pair of {self.first!r} and {self.second!r}"
        if self.first == self.second:
            raise InputError(f"{pair}: two different layers are a pair; give its cost to the layer")
        values = np.array(self.values, dtype=np.float64)
        if values.ndim != 2 or values.shape[0] != values.shape[1]:
            raise InputError(f"{pair}: expected [B, B], got {values.shape}")
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, column = bad[0].tolist()
            raise InputError(
                f"{pair}: precisions {row} and {column} of the table cost {values[row, column]}; "
                "every cost of a pair must be finite: restrict the candidates instead"
            )
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: first, second, values."""
        return {"first": self.first, "second": self.second, "values": self.values.tolist()}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Inverse of ``to_dict``.

        Raises:
            FileFormatError: If a key is missing or of another kind.
        """
        try:
            names = data["first"], data["second"]
            if not all(isinstance(name, str) for name in names):
                raise FileFormatError(f"not a pair cost: expected two names of layers, got {names}")
            return cls(*names, np.array(data["values"], dtype=np.float64))
        except InputError:
            raise
        except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
            raise FileFormatError(f"not a pair cost: {error!r}") from error
