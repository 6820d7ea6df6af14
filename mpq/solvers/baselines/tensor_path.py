"""Weights and inputs apart: an order of tensors, and the assignments on the way down."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Self, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq.errors import InputError
from mpq.problem.cost_table import INPUTS, WEIGHTS
from mpq.problem.grouped import Grouped
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.quantization.tensor_format import TensorFormat


@final
@dataclass(frozen=True)
class Tensor:
    """A group's weights, or its inputs.

    Args:
        group: Index of the group.
        what: ``WEIGHTS`` or ``INPUTS``.
        formats: From the most bits on.
        loss: What the group loses above its most precise column with only this at its fewest bits.
    """

    group: int
    what: str
    formats: tuple[TensorFormat, ...]
    loss: float


@final
@dataclass(frozen=True, eq=False)
class TensorPath:
    """Assignments from all tensors at their most bits to all at their fewest, one tensor a step.

    All tensors are lowered to their next format in the order of what each loses by itself, the
    least first; then all to the one after that.

    Args:
        steps: ``[P, G]`` columns of the groups.
    """

    steps: Columns

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """The path of a problem, whatever its budgets.

        Raises:
            InputError: If a layer may take two formats of weights and two of inputs, and not every
                pair of them.
        """
        grouped, precisions = problem.grouped, problem.loss.precisions
        names = [problem.loss.layers[rows[0]] for rows in grouped.members]
        cells = [_Cells.of(name, row, precisions) for name, row in zip(names, grouped.allowed,
                                                                      strict=True)]  # fmt: skip
        tensors = [x for g, own in enumerate(cells) for x in own.tensors(g, grouped.loss[g])]
        # The order is stable: of equals the first in the network.
        order = sorted(tensors, key=lambda tensor: tensor.loss)
        levels = {(x.group, x.what): 0 for x in order}
        steps = [[own.column(0, 0) for own in cells]]
        for level in range(1, max((len(x.formats) for x in order), default=1)):
            for tensor in order:
                if level < len(tensor.formats):
                    g = tensor.group
                    levels[g, tensor.what] = level
                    column = cells[g].column(levels[g, WEIGHTS], levels[g, INPUTS])
                    steps.append([*steps[-1][:g], column, *steps[-1][g + 1 :]])
        return cls(np.array(steps, dtype=np.intp))

    def layers(self, grouped: Grouped) -> Iterator[Columns]:
        """``[L]`` columns of the layers, step by step."""
        return map(grouped.expand, self.steps)


@final
@dataclass(frozen=True)
class _Cells:
    """What a group may take, as a product of formats of weights and of inputs.

    Args:
        weights: From the most bits on.
        inputs: From the most bits on.
        columns: Column of every pair.
    """

    weights: tuple[TensorFormat, ...]
    inputs: tuple[TensorFormat, ...]
    columns: dict[tuple[TensorFormat, TensorFormat], int]

    @classmethod
    def of(cls, name: str, allowed: Array, precisions: tuple[Precision, ...]) -> Self:
        """From the columns that a group may take."""
        columns = {(precisions[c].weight, precisions[c].activation): c
                   for c in np.flatnonzero(allowed).tolist()}  # fmt: skip
        weights, inputs = (_by_bits(each) for each in zip(*columns, strict=True))
        missing = [pair for pair in product(weights, inputs) if pair not in columns]
        if missing:
            absent = Precision(*missing[0])
            raise InputError(
                "tensors=true lowers weights and inputs apart, and needs every pair of their "
                f"formats: layer {name!r} may not take {absent}; name it among the candidates "
                "(--precisions), or leave tensors=true out"
            )
        return cls(weights, inputs, columns)

    def column(self, weight: int, activation: int) -> int:
        """Column of a pair of levels; 0 is the one of the most bits."""
        return self.columns[self.weights[weight], self.inputs[activation]]

    def tensors(self, group: int, loss: Array) -> Iterator[Tensor]:
        """Weights and inputs of a group, of whose losses ``[B]`` the two are told."""
        best = loss[self.column(0, 0)]
        lowered = loss[self.column(len(self.weights) - 1, 0)]
        yield Tensor(group, WEIGHTS, self.weights, float(lowered - best))
        lowered = loss[self.column(0, len(self.inputs) - 1)]
        yield Tensor(group, INPUTS, self.inputs, float(lowered - best))


def _by_bits(formats: tuple[TensorFormat, ...]) -> tuple[TensorFormat, ...]:
    return tuple(sorted(dict.fromkeys(formats), key=lambda each: -each.number.bits))
