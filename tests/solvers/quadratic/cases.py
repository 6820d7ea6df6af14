"""Small problems with interactions as plain numbers, and every assignment's loss by hand."""

from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision

PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w6a8", "w8a8")))
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Case:
    """A problem as plain numbers, from which the reference works."""

    factor: Floats
    loss: Floats
    costs: tuple[Floats, ...] = ()
    limits: tuple[float, ...] = ()
    shrinkage: float = 0.0
    ties: tuple[tuple[int, ...], ...] = ()
    fixed: dict[int, int] = field(default_factory=dict)

    def problem(self) -> Problem:
        """The same for mpq."""
        names = tuple(f"layer{i}" for i in range(len(self.loss)))
        precisions = PRECISIONS[: self.loss.shape[1]]
        tables = [
            CostTable(f"r{i}", "bytes", names, precisions, cost)
            for i, cost in enumerate(self.costs)
        ]
        return Problem(
            CostTable("loss", "nats", names, precisions, self.loss),
            Constraints(
                tuple(Budget.of(t, limit) for t, limit in zip(tables, self.limits, strict=True)),
                tuple(tuple(names[i] for i in tie) for tie in self.ties),
                {names[i]: precisions[column] for i, column in self.fixed.items()},
            ),
            interactions=Interactions(self.factor, self.shrinkage),
        )

    def losses(self) -> Floats:
        """``[A]`` of all assignments, ``inf`` where one is not feasible."""
        num_layers, num_precisions = self.loss.shape
        every = np.array(list(product(range(num_precisions), repeat=num_layers)))  # [A, L]
        one_hot = np.eye(num_precisions)[every].reshape(len(every), -1)  # [A, L B]
        sums = one_hot @ self.factor.reshape(len(self.factor), -1).T  # [A, S]
        own = 0.5 * (self.factor**2).mean(axis=0)  # [L, B]
        losses = (1 - self.shrinkage) * (0.5 * (sums**2).mean(axis=1) - one_hot @ own.ravel())
        losses += one_hot @ self.loss.ravel()
        for cost, limit in zip(self.costs, self.limits, strict=True):
            losses[one_hot @ cost.ravel() > limit * (1 + 1e-12)] = np.inf
        for tie in self.ties:
            losses[(every[:, list(tie)] != every[:, [tie[0]]]).any(axis=1)] = np.inf
        for layer, column in self.fixed.items():
            losses[every[:, layer] != column] = np.inf
        return np.asarray(losses)


def random_case(seed: int, num_layers: int = 7, num_rows: int = 12) -> Case:
    """Errors that fall with the bits and are correlated over layers; two limits that bind."""
    rng = np.random.default_rng(seed)
    shape = (num_rows, num_layers, 4)
    rows = rng.standard_normal(shape) + rng.standard_normal((num_rows, num_layers, 1))
    factor = np.round(rows * rng.lognormal(0, 0.7, (num_layers, 1)) * [4, 2, 1, 0.5] * 8) / 8
    loss = 0.5 * (factor**2).mean(axis=0)
    costs = np.sort(rng.integers(1, 40, (2, num_layers, 4)), axis=2).astype(np.float64)
    shares = rng.uniform(0.2, 0.8, 2)
    low, high = costs.min(axis=2).sum(axis=1), costs.max(axis=2).sum(axis=1)
    limits = low + shares * (high - low)
    return Case(factor, loss, tuple(costs), tuple(limits.tolist()))


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shrunk": {"shrinkage": 0.4},
    "sloped": {},
    "tied": {"ties": ((0, 3), (1, 2)), "fixed": {5: 0}, "shrinkage": 0.2},
}


def of_kind(case: Case, kind: str) -> Case:
    """The case with shrinkage, ties, or a table that is not that of the factor."""
    if kind == "sloped":
        extra = np.random.default_rng(9).integers(0, 64, case.loss.shape) / 8
        return replace(case, loss=case.loss + extra, shrinkage=0.25)
    return replace(case, **KINDS[kind])
