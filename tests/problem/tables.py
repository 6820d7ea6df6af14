"""Four layers at three precisions, two of whose cells nobody can run."""

import numpy as np
import numpy.typing as npt

from mpq.problem.cost_table import CostTable
from mpq.quantization.precision import Precision

LAYERS = ("a", "b", "c", "d")
W2, W4, W8 = PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w8a8")))
NAN = float("nan")
LOSS = np.array([[9, 4, 1], [8, 3, 0], [7, 5, 2], [6, 6, 6]], dtype=np.float64)
BYTES = np.array([[1, 2, 4], [2, 4, 8], [3, 6, 12], [4, 8, 16]], dtype=np.float64)
TIME = np.array([[1, 1, 2], [1, 1, 2], [1, NAN, 2], [NAN, 1, 2]], dtype=np.float64)


def table(name: str, unit: str, values: npt.ArrayLike) -> CostTable:
    """A table of the four layers at the three precisions."""
    return CostTable(name, unit, LAYERS, PRECISIONS, np.array(values, dtype=np.float64))
