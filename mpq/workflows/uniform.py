"""Uniform precisions, as far as layers may take them: what one would take without a search."""

import numpy as np

from mpq._support.arrays import Columns
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision


def uniform_within(problem: Problem) -> dict[Precision, Columns]:
    """Columns ``[L]`` of every uniform precision that meets all the budgets, by ``nearest``."""
    tried = {p: nearest(problem, p) for p in problem.loss.precisions}
    return {p: columns for p, columns in tried.items() if problem.is_feasible(columns)}


def nearest(problem: Problem, precision: Precision) -> Columns:
    """Columns ``[L]`` of one uniform precision.

    Layers that may not take it (fixed ones, those with candidates of their own, those that the
    device does not run at it or the target does not hold) take the nearest of what they may: by
    bits of the weight, then of the activation, the larger of two that are equally near.
    """

    def distance(other: Precision) -> tuple[bool, float, float, float]:
        weight = other.weight.number.bits - precision.weight.number.bits
        activation = other.activation.number.bits - precision.activation.number.bits
        return (other != precision, abs(weight), abs(activation), -weight)

    order = sorted(
        range(len(problem.loss.precisions)), key=lambda c: distance(problem.loss.precisions[c])
    )
    columns = np.empty(len(problem.loss.layers), dtype=np.intp)
    # By groups: tied layers take what all of them may.
    for members, allowed in zip(problem.grouped.members, problem.grouped.allowed, strict=True):
        columns[list(members)] = next(column for column in order if allowed[column])
    return columns


def compared(problem: Problem, precision: Precision, as_far_as_allowed: bool) -> Columns:
    """Columns ``[L]`` that a comparison calls by a precision: it in every layer.

    As far as layers may take it, in a search for a target, since nothing else could be deployed
    instead, and in one of key-value caches, which have candidates of their own.
    """
    if as_far_as_allowed:
        return nearest(problem, precision)
    return np.full(len(problem.loss.layers), problem.loss.index_of(precision), dtype=np.intp)
