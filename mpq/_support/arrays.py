"""Names for the arrays that are handed on, each defined once."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
"""Losses, costs, rates: any real numbers."""
Mask = npt.NDArray[np.bool_]
"""What is allowed, kept, or reached."""
Columns = npt.NDArray[np.intp]
"""``[L]`` (or ``[G]``, for groups of tied layers) column of every layer's precision."""
AnyArray = npt.NDArray[Any]
"""Of whatever dtype: codes, ids, what a runtime takes and gives."""
