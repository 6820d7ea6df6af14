"""Factors of channels from ranges of weights and magnitudes of inputs: numbers alone."""

from typing import Final, TypeAlias

import numpy as np

from mpq._support.arrays import Array

Flags: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.bool_]]"
LARGEST: Final = 2.0**16
"""Factors lie within this and its inverse: fp16 holds what is multiplied by a few of them."""


def balanced(
    made: Array, read: Array, is_free: "np.ndarray[tuple[int], np.dtype[np.bool_]]"
) -> Array:
    """``[n]`` square roots of ``made / read``; 1 where one of them is 0 or a factor is not free.

    >>> balanced(np.array([4.0, 0.0, 9.0]), np.ones(3), np.array([True, True, False])).tolist()
    [2.0, 1.0, 1.0]
    """
    usable = is_free & (made > 0) & (read > 0)
    quotient = np.divide(made, read, out=np.ones_like(made), where=usable)
    return np.clip(np.sqrt(quotient), 1 / LARGEST, LARGEST)


def smoothing(
    inputs: Array,
    weights: Array,
    alpha: float,
    beta: float,
    is_free: Flags,
) -> Array:
    r"""``[n]`` factors :math:`a^\alpha / w^\beta`, with a geometric mean of 1.

    Args:
        inputs: ``[n]`` magnitudes ``a`` of what layers read.
        weights: ``[n]`` magnitudes ``w`` of the weights that they meet.
        alpha: How much of the inputs' magnitudes goes to the weights.
        beta: How much of the weights' magnitudes goes to the inputs.
        is_free: Which factors may be another than 1.
    """
    usable = is_free & (inputs > 0) & (weights > 0)
    logs = np.zeros_like(inputs)
    logs[usable] = alpha * np.log(inputs[usable]) - beta * np.log(weights[usable])
    if usable.any():
        logs[usable] -= logs[usable].mean()
    return np.clip(np.exp(logs), 1 / LARGEST, LARGEST)
