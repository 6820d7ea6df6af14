"""How what a layer reads is rounded in every cluster of steps: by which format and which range."""

from collections.abc import Callable
from typing import TypeAlias

from mpq.quantization.range_method import ActivationRange
from mpq.quantization.tensor_format import TensorFormat

Case: TypeAlias = tuple[TensorFormat, ActivationRange | None]


def step_cases(tensor_format: TensorFormat, calibrated: ActivationRange | None) -> list[Case]:
    """``[T]``; empty where all steps are alike.

    Args:
        tensor_format: With or without bits by cluster.
        calibrated: With or without ranges by cluster.
    """
    formats = tensor_format.by_step
    ranges = calibrated.steps if calibrated is not None else ()
    count = len(formats) or len(ranges)
    return list(
        zip(formats or [tensor_format] * count, ranges or [calibrated] * count, strict=True)
    )


def range_of_steps(
    tensor_format: TensorFormat, of_width: Callable[[TensorFormat], ActivationRange]
) -> ActivationRange:
    """The ranges of every cluster at its own bits, of a static format.

    Args:
        tensor_format: One with bits by cluster.
        of_width: The range of one of its widths, which may be of all steps.
    """
    found = []
    for cluster, width in enumerate(tensor_format.by_step):
        own = of_width(width)
        found.append(own.steps[cluster] if own.steps else own)
    low, high = min(x.low for x in found), max(x.high for x in found)
    return ActivationRange(low, high, steps=tuple(found))
