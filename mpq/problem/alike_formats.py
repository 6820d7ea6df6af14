"""Which formats parts of one layer may have beside each other: those that differ in bits alone."""

from dataclasses import replace

import numpy as np

from mpq._support.arrays import Columns, Mask
from mpq.problem.problem import Problem
from mpq.quantization.channel_bits import OUTPUTS
from mpq.quantization.tensor_format import TensorFormat


def can_split(weight: TensorFormat, like: TensorFormat, axis: str = OUTPUTS) -> bool:
    """Whether parts of one weight may be in these two formats: they differ in bits alone."""
    both = weight.has_parts(axis) and like.has_parts(axis) and weight.symmetric == like.symmetric
    return both and replace(weight, number=like.number) == like


def can_split_read(read: TensorFormat, like: TensorFormat) -> bool:
    """Whether blocks of what is read may be in these two formats: they differ in bits alone."""
    both = read.has_blocks and like.has_blocks
    return both and replace(read, number=like.number) == like


def can_differ_by_step(read: TensorFormat, like: TensorFormat) -> bool:
    """Whether what is read may be in these two formats at other steps: they differ in bits."""
    both = read.is_scaled_integer and like.is_scaled_integer
    return both and replace(read, number=like.number) == like


def open_weights(problem: Problem, columns: Columns, axis: str) -> Mask:
    """``[L, B]`` what a weight's parts may take: the answer's input, and formats like its own.

    A layer whose weight has no such formats keeps what it has.
    """
    precisions = problem.loss.precisions
    allowed = problem.grouped.allowed[problem.grouped.group_of]
    found = np.zeros_like(allowed)
    for row, column in enumerate(columns.tolist()):
        chosen = precisions[column]
        for other, precision in enumerate(precisions):
            is_alike = can_split(chosen.weight, precision.weight, axis)
            is_same = precision.activation == chosen.activation
            found[row, other] = allowed[row, other] and is_alike and is_same
        found[row, column] = True
    return found
