"""Budgets with costs of pairs of layers: every solver against exhaustive search."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpq
from mpq.errors import InputError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.quantization.precision import Precision
from mpq.solvers import (
    Auto,
    Bayesian,
    BranchAndBound,
    Evolutionary,
    IntegerLinearProgram,
    LocalSearch,
    OuterApproximation,
    Solver,
    Surrogate,
)
from mpq.solvers.additive.default import additive_solver

PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w8a8", "fp32")))
EXACT: list[Solver] = [IntegerLinearProgram("HiGHS"), IntegerLinearProgram("CBC"), Auto()]
INTERACTING: list[Solver] = [OuterApproximation(gap=0.0), BranchAndBound(), Auto()]
SEARCHES: list[Solver] = [
    LocalSearch(num_restarts=20),
    Evolutionary(num_trials=40, population_size=20),
    Bayesian(num_trials=30),
    Surrogate(num_trials=30),
]
EVERY: list[Solver] = [part() for part in mpq.SOLVERS]
Floats = npt.NDArray[np.float64]
Columns = tuple[int, ...]


def name_of(solver: Solver) -> str:
    """How pytest calls a solver."""
    return f"{solver.name}-{getattr(solver, 'backend', '')}".rstrip("-")


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


def check(case: Case, found: Solution, problem: Problem) -> None:
    """What holds of every answer: it is one of those that the reference calls feasible."""
    feasible = case.feasible()
    assert (found.status is Status.INFEASIBLE) == (not feasible)
    if found.columns is None:
        return
    assert tuple(found.columns.tolist()) in feasible
    assert found.loss == problem.loss_of(found.columns)
    assert found.bound is None or found.bound <= found.loss


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


@settings(max_examples=30)
@given(case=cases(has_loss_pairs=True))
def test_the_total_is_constant_cells_and_pairs(case: Case) -> None:
    """Against exact sums; budgets and losses count the same; groups lose nothing of it."""
    problem = case.problem()
    grouped, feasible = problem.grouped, case.feasible()

    for picked in case.allowed()[::11]:
        columns = np.array(picked)
        groups = columns[[rows[0] for rows in grouped.members]]
        joint = grouped.pairwise.cost(groups[None])[0]
        cells = np.arange(len(groups)), groups
        for row, cost in enumerate(case.costs):
            expected = float(cost.of(picked))
            used = problem.budgets[row].used(columns)
            size = np.nanmax(np.abs(cost.values)) * 20 + 1e-300
            assert used == expected
            assert grouped.costs[row][cells].sum() + joint[1 + row] == pytest.approx(
                expected, abs=1e-12 * size
            )
        assert problem.loss_of(columns) == float(case.loss.of(picked))
        assert problem.is_feasible(columns) == (picked in feasible)
    assert (grouped.pairwise.values >= 0).all()


@pytest.mark.parametrize("solver", EXACT, ids=name_of)
def test_an_exact_solver_equals_exhaustive_search(solver: Solver) -> None:
    """With pairs in the budgets and in the loss; it says that its answer is the best."""

    @settings(max_examples=40 if solver.name == "ilp" else 20)
    @given(case=cases(has_loss_pairs=True))
    def compare(case: Case) -> None:
        problem = case.problem()
        expected = min((float(case.loss.of(c)) for c in case.feasible()), default=None)

        found = solver.solve(problem)

        check(case, found, problem)
        if expected is not None:
            scale = float(np.abs(case.loss.values).max()) * 20
            assert found.status is Status.OPTIMAL
            assert found.loss == pytest.approx(expected, rel=1e-9, abs=1e-9 * scale)
            assert found.bound == pytest.approx(expected, rel=1e-9, abs=1e-9 * scale)

    compare()


@pytest.mark.parametrize("solver", INTERACTING, ids=name_of)
@pytest.mark.parametrize("shrinkage", [0.0, 0.7])
def test_interactions_beside_pairs_equal_exhaustive_search(
    solver: Solver, shrinkage: float
) -> None:
    """The quadratic loss within budgets that have pairs: best of all up to the solver's gap."""
    gap = 1e-3 if isinstance(solver, Auto) else 1e-6

    @settings(max_examples=8)
    @given(case=cases(), seed=st.integers(0, 99))
    def compare(case: Case, seed: int) -> None:
        case = replace(case, loss=Cost(np.ones_like(case.loss.values)))
        problem = interacting(seed, case, shrinkage)
        losses = [problem.loss_of(np.array(columns)) for columns in case.feasible()]

        found = solver.solve(problem)

        check(case, found, problem)
        if losses:
            best = min(losses)
            assert found.loss <= best + 1.1 * gap * abs(best) + 1e-9
            assert found.bound is not None
            assert best - 2 * gap * abs(best) - 1e-9 <= found.bound
            assert found.bound <= best + 1e-6 * abs(best) + 1e-9

    compare()


@pytest.mark.parametrize("solver", SEARCHES, ids=name_of)
def test_a_search_stays_within_budgets_that_have_pairs(solver: Solver) -> None:
    """Its answer is feasible, and an infeasible problem is recognised."""

    @settings(max_examples=6)
    @given(case=cases(), seed=st.integers(0, 99))
    def compare(case: Case, seed: int) -> None:
        problem = interacting(seed, case)

        check(case, solver.solve(problem), problem)

    compare()


@pytest.mark.parametrize("seed", range(2))
def test_the_local_search_exchanges_neighbours_within_the_budget(seed: int) -> None:
    """Its moves count conversions: from the additive answer it comes within 2 % of the best."""
    case = conversions(seed, num_layers=7)
    problem = interacting(seed, case)
    best = min(problem.loss_of(np.array(columns)) for columns in case.feasible())

    found = LocalSearch(num_restarts=60).solve(problem)

    check(case, found, problem)
    assert found.loss <= 1.02 * best
    assert found.bound is not None
    assert found.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("solver", EVERY, ids=name_of)
def test_every_solver_takes_pairs_or_says_who_does(solver: Solver) -> None:
    """What it declares is what it does; the message names the solvers that take them."""
    case = conversions(1)
    problem = case.problem()

    if solver.takes_pairs:
        check(case, solver.solve(problem), problem)
        return
    with pytest.raises(InputError, match=r"r0 also has costs of pairs.* 'ilp'") as refusal:
        solver.solve(problem)
    named = [name for name in mpq.SOLVERS if f"'{name.name}'" in str(refusal.value)]
    assert len(named) >= 4
    assert all(part.takes_pairs for part in named)


def test_pairs_of_tied_or_fixed_layers_suit_every_solver() -> None:
    """They are sums over layers after all: with ties, with one side given."""
    case = conversions(1, num_layers=3)
    tied = replace(case, ties=((0, 1),), fixed={2: 0})
    expected = min(float(case.loss.of(columns)) for columns in tied.feasible())

    found = mpq.SOLVERS.build("lagrangian").solve(tied.problem())

    assert found.status is Status.OPTIMAL
    assert found.loss == pytest.approx(expected)


def test_auto_says_what_it_takes_for_conversions_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no sum over layers: an integer program; with interactions a proof by its size."""
    case = conversions(0)

    found, quadratic = Auto().solve(case.problem()), Auto().solve(interacting(0, case))
    monkeypatch.setattr("mpq.solvers.auto._PROVED_MOVES", 11)
    large = Auto().solve(interacting(0, case))

    assert found.why == (
        "auto took ilp: the loss is a sum over layers, with costs of pairs of layers"
    )
    assert quadratic.solver.startswith("branch-and-bound")
    assert large.solver.startswith("outer-approximation")
    for solution in (quadratic, large):
        assert solution.why.endswith("interactions of 12 precisions, with costs of pairs of layers")


def test_conversions_change_the_answer() -> None:
    """Ignored, they break the budget; counted, formats come in blocks."""
    case = conversions(5, num_layers=8)
    without = replace(case, costs=(replace(case.costs[0], pairs=()),))
    plain = IntegerLinearProgram().solve(without.problem())
    assert plain.columns is not None

    found = IntegerLinearProgram().solve(case.problem())

    assert found.columns is not None
    assert not case.meets(tuple(plain.columns.tolist()), 0)
    assert case.meets(tuple(found.columns.tolist()), 0)


def best_of_a_chain(loss: Floats, cost: npt.NDArray[np.int64], joint: Any, limit: int) -> float:
    """Dynamic programming over integer costs and the last precision of a chain of layers."""
    size = loss.shape[1]
    best = np.full((size, limit + 1), np.inf)
    for column in range(size):
        best[column, cost[0, column] :] = loss[0, column]
    for losses, costs in zip(loss[1:], cost[1:], strict=True):
        after = np.full_like(best, np.inf)
        for before, column in product(range(size), repeat=2):
            shift = int(costs[column] + joint[before, column])
            moved = best[before, : max(limit + 1 - shift, 0)] + losses[column]
            after[column, shift:] = np.minimum(after[column, shift:], moved)
        best = after
    return float(best[:, -1].min())


@pytest.mark.parametrize("seed", range(4))
def test_a_chain_of_thirty_layers_equals_dynamic_programming(seed: int) -> None:
    """Large enough for a relaxation to be off; conversions of a random cost each way."""
    rng = np.random.default_rng(seed)
    loss = -np.sort(-rng.lognormal(0, 1.5, (30, 4)), axis=1)
    units = np.sort(rng.integers(5, 60, (30, 4)), axis=1)
    joint = rng.integers(1, 30, (4, 4)) * (1 - np.eye(4, dtype=np.int64))
    limit = int(units.min(axis=1).sum() + 0.3 * np.ptp(units, axis=1).sum())
    seconds, converting = units.astype(np.float64) * 1e-6, joint.astype(np.float64) * 1e-6
    pairs = tuple((i, i + 1, converting) for i in range(29))
    case = Case(Cost(loss), (Cost(seconds, 2e-4, pairs),), (limit * 1e-6 + 2e-4,))

    found = IntegerLinearProgram().solve(case.problem())

    assert found.status is Status.OPTIMAL
    assert found.loss == pytest.approx(best_of_a_chain(loss, units, joint, limit), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_why_an_infeasible_problem_is(seed: int) -> None:
    """The least of a budget counts its pairs and constant, alone and beside the other budget."""
    case = conversions(seed)
    flipped = Cost(case.costs[0].values[:, ::-1].copy(), 0.1, case.costs[0].pairs[:2])
    both = replace(case, costs=(case.costs[0], flipped), limits=(0.0, 0.0))
    least = [min(float(cost.of(c)) for c in both.allowed()) for cost in both.costs]
    tight = replace(both, limits=(least[0] * 1.05, least[1] * 1.05))
    assert not tight.feasible()

    found = IntegerLinearProgram().solve(tight.problem())

    assert [s.smallest for s in found.shortfalls] == pytest.approx(least)
    for row, shortfall in enumerate(found.shortfalls):
        within = [tight.costs[row].of(c) for c in tight.allowed() if tight.meets(c, 1 - row)]
        assert shortfall.smallest_within_others == pytest.approx(float(min(within)))
    assert found.conflict == ("r0", "r1")


def test_the_same_problem_has_the_same_answer() -> None:
    """Twice, and whichever way round a pair is written, or in two parts."""
    case = conversions(8, num_layers=6)
    turned = tuple((j, i, v.T / 2) for i, j, v in case.costs[0].pairs) * 2
    other = replace(case, costs=(replace(case.costs[0], pairs=turned),))

    first, second, third = (
        IntegerLinearProgram().solve(c.problem()).columns for c in (case, case, other)
    )

    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)


def test_out_of_time_is_never_called_optimal() -> None:
    """A hundred layers, all precisions unlike: the answer keeps the budget, the bound is one."""
    rng = np.random.default_rng(0)
    pairs = tuple((i, i + 1, rng.random((4, 4))) for i in range(99))
    cost = Cost(np.sort(rng.random((100, 4)), axis=1), 1.0, pairs)
    loss = Cost(-np.sort(-rng.random((100, 4)), axis=1))
    problem = Case(loss, (cost,), (80.0,)).problem()

    found = IntegerLinearProgram(time_limit_s=0.5).solve(problem)

    assert found.status is not Status.INFEASIBLE
    if found.columns is not None:
        assert problem.is_feasible(found.columns)
        assert found.bound is None or found.bound <= found.loss
        assert found.status is not Status.OPTIMAL or found.bound == pytest.approx(found.loss)


def test_the_solver_of_sums_stops_after_a_minute_where_there_are_pairs() -> None:
    """Small ones at the proved optimum, large ones at a gap of 0.01 %."""
    small, large = conversions(0).problem(), conversions(0, num_layers=201).problem()

    assert additive_solver(small) == IntegerLinearProgram(time_limit_s=60.0)
    assert additive_solver(large) == IntegerLinearProgram(time_limit_s=60.0, gap=1e-4)
