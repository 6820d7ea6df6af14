"""Problems with costs of pairs of layers as plain numbers, and exact sums of their assignments."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import product

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision

PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w8a8", "fp32")))
Floats = npt.NDArray[np.float64]
Columns = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Cost:
    """A table as plain numbers, from which the reference works.

    Args:
        values: ``[L, B]``.
        constant: In the same unit.
        pairs: Two layers and ``[B, B]``.
    """

    values: Floats
    constant: float = 0.0
    pairs: tuple[tuple[int, int, Floats], ...] = ()

    def of(self, columns: Columns) -> Fraction:
        """What an assignment costs, exactly."""
        cells = [Fraction(float(self.values[row, c])) for row, c in enumerate(columns)]
        pairs = [Fraction(float(v[columns[i], columns[j]])) for i, j, v in self.pairs]
        return sum([*cells, *pairs], Fraction(self.constant))

    def table(self, name: str, unit: str) -> CostTable:
        """The same for mpq, of layers ``l0``, ``l1``, ..."""
        layers = tuple(f"l{i}" for i in range(len(self.values)))
        pairs = tuple(PairwiseCost(f"l{i}", f"l{j}", values) for i, j, values in self.pairs)
        precisions = PRECISIONS[: self.values.shape[1]]
        return CostTable(name, unit, layers, precisions, self.values, self.constant, pairs)


@dataclass(frozen=True, eq=False)
class Case:
    """A problem as plain numbers."""

    loss: Cost
    costs: tuple[Cost, ...]
    limits: tuple[float, ...]
    ties: tuple[Columns, ...] = ()
    fixed: Mapping[int, int] = field(default_factory=dict)
    candidates: Mapping[int, Columns] = field(default_factory=dict)

    def problem(self, interactions: Interactions | None = None) -> Problem:
        """The same for mpq."""
        limited = zip(self.costs, self.limits, strict=True)
        return Problem(
            self.loss.table("loss", "nats"),
            Constraints(
                tuple(
                    Budget.of(c.table(f"r{i}", "seconds"), top)
                    for i, (c, top) in enumerate(limited)
                ),
                tuple(tuple(f"l{i}" for i in tie) for tie in self.ties),
                {f"l{i}": PRECISIONS[column] for i, column in self.fixed.items()},
                {f"l{i}": [PRECISIONS[c] for c in cs] for i, cs in self.candidates.items()},
            ),
            interactions,
        )

    def allowed(self) -> list[Columns]:
        """Every assignment that keeps ties, fixed layers, candidates and empty cells."""
        layers, precisions = self.loss.values.shape
        return [
            columns
            for columns in product(range(precisions), repeat=layers)
            if all(columns[i] == column for i, column in self.fixed.items())
            and all(columns[i] in options for i, options in self.candidates.items())
            and all(len({columns[i] for i in tie}) == 1 for tie in self.ties)
            and not any(np.isnan(c.values[i, z]) for c in self.costs for i, z in enumerate(columns))
        ]

    def meets(self, columns: Columns, row: int) -> bool:
        """Whether a budget holds, in exact arithmetic with the slack of 1e-12 that mpq states."""
        limit = Fraction(self.limits[row])
        return self.costs[row].of(columns) <= limit + abs(limit) * Fraction(1e-12)

    def feasible(self) -> list[Columns]:
        """Every assignment that keeps everything."""
        rows = range(len(self.costs))
        return [columns for columns in self.allowed() if all(self.meets(columns, r) for r in rows)]


NUMBERS = {
    "equal": st.integers(0, 2).map(float),
    "tenths": st.integers(1, 30).map(lambda n: n / 10),
    "small": st.integers(1, 10**4).map(lambda n: n * 1e-10),
    "signed": st.integers(-50, 50).map(lambda n: n / 7),
    "spread": st.builds(lambda n, power: n * 10.0**power, st.integers(1, 99), st.integers(-5, 4)),
}


@st.composite
def arrays(draw: st.DrawFn, kind: str, shape: Columns) -> Floats:
    """Numbers of one kind."""
    size = int(np.prod(shape))
    return np.array(draw(st.lists(NUMBERS[kind], min_size=size, max_size=size))).reshape(shape)


@st.composite
def pairs_of(draw: st.DrawFn, kind: str, num_layers: int, size: int) -> Floats:
    """Any numbers, or a cost wherever two kinds of formats meet: 0 within each."""
    if draw(st.booleans()):
        return draw(arrays(kind, (size, size)))
    side = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    cost = np.abs(draw(arrays(kind, (2,))))
    return np.where(side[:, None] & ~side, cost[0], np.where(~side[:, None] & side, cost[1], 0.0))


@st.composite
def tables(draw: st.DrawFn, num_layers: int, size: int, has_gaps: bool) -> Cost:
    """With up to four pairs, some of the same layers, and a constant."""
    kind = draw(st.sampled_from(sorted(NUMBERS)))
    values = draw(arrays(kind, (num_layers, size)))
    if has_gaps and size > 1 and draw(st.booleans()):
        values[draw(st.integers(0, num_layers - 1)), draw(st.integers(1, size - 1))] = np.nan
    constant = draw(st.sampled_from([0.0, 1.0, -0.3])) * float(np.nanmax(np.abs(values)))
    ends = st.tuples(*[st.integers(0, num_layers - 1)] * 2).filter(lambda two: two[0] != two[1])
    found = draw(st.lists(ends, max_size=4)) if num_layers > 1 else []
    pairs = tuple((i, j, draw(pairs_of(kind, num_layers, size))) for i, j in found)
    return Cost(values, constant, pairs)


@st.composite
def cases(draw: st.DrawFn, has_loss_pairs: bool = False) -> Case:
    """Ties, fixed layers, candidates, empty cells; limits at a reachable cost, or around it."""
    num_layers, size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    loss = draw(tables(num_layers, size, has_gaps=False))
    loss = loss if has_loss_pairs else replace(loss, pairs=())
    costs = tuple(
        draw(tables(num_layers, size, has_gaps=True)) for _ in range(draw(st.integers(1, 2)))
    )
    layer = st.integers(0, num_layers - 1)
    ties = tuple(draw(st.lists(st.tuples(layer, layer), max_size=1)))
    fixed = draw(st.sampled_from([{}, {}, {0: 0}]))
    candidates = {draw(layer): (0, size - 1)} if draw(st.booleans()) else {}
    whole = Case(loss, costs, (), ties, fixed, candidates)
    limits = []
    for cost in costs:
        sums = sorted(float(cost.of(columns)) for columns in whole.allowed())
        share = draw(st.floats(0, 1))
        least = sums[0] - 1e-9 * abs(sums[0]) if sums[0] else -1e-9
        middle = sums[0] + share * (sums[-1] - sums[0])
        limits.append(draw(st.sampled_from([middle, sums[len(sums) // 2], sums[0], least])))
    return replace(whole, limits=tuple(limits))


def conversions(seed: int, num_layers: int = 4, size: int = 3) -> Case:
    """A chain of layers: converting costs where one side is the last precision; it can be met."""
    rng = np.random.default_rng(seed)
    loss = -np.sort(-rng.random((num_layers, size)), axis=1)
    values = np.sort(rng.random((num_layers, size)) + 0.2, axis=1)
    is_last = np.arange(size) == size - 1
    cost = np.where(is_last[:, None] != is_last, 0.4, 0.0)
    chain = tuple((i, i + 1, cost) for i in range(num_layers - 1))
    latency = Cost(values, 0.5, chain)
    limit = 0.5 + float(0.5 * values.min(axis=1).sum() + 0.5 * values.max(axis=1).sum())
    return Case(Cost(loss), (latency,), (limit,))


def interacting(seed: int, case: Case, shrinkage: float = 0.0) -> Problem:
    """The case with errors that add up and cancel."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((8, *case.loss.values.shape)).astype(np.float32)
    return case.problem(Interactions(factor, shrinkage))
