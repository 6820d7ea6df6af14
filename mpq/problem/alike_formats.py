"""Which formats parts of one layer may have beside each other: those that differ in bits alone."""

from collections.abc import Callable
from dataclasses import replace

from mpq._support.arrays import Columns, Mask
from mpq.problem.problem import Problem
from mpq.quantization.channel_bits import OUTPUTS
from mpq.quantization.precision import Precision
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

    def is_open(chosen: Precision, other: Precision) -> bool:
        is_alike = can_split(chosen.weight, other.weight, axis)
        return is_alike and other.activation == chosen.activation

    return _open(problem, columns, is_open)


def open_reads(
    problem: Problem, columns: Columns, are_alike: Callable[[TensorFormat, TensorFormat], bool]
) -> Mask:
    """``[L, B]`` what parts of an input may take: the answer's weight, and formats like its own.

    Args:
        problem: That of whole layers.
        columns: ``[L]`` its answer.
        are_alike: Whether parts of what is read may be in two formats.
    """

    def is_open(chosen: Precision, other: Precision) -> bool:
        is_alike = are_alike(chosen.activation, other.activation)
        return is_alike and other.weight == chosen.weight

    return _open(problem, columns, is_open)


def _open(
    problem: Problem, columns: Columns, is_open: Callable[[Precision, Precision], bool]
) -> Mask:
    precisions = problem.loss.precisions
    found = problem.grouped.allowed[problem.grouped.group_of]
    for row, column in enumerate(columns.tolist()):
        found[row] &= [is_open(precisions[column], other) for other in precisions]
        found[row, column] = True
    return found
