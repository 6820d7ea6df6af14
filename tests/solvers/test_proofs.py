"""What solvers claim is compared with what is known: a wrong proof is never returned as one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from mpq.errors import InputError, SolverError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.problem.tolerances import LIMIT, PROVED_BOUND
from mpq.quantization.precision import Precision
from mpq.solvers import SOLVERS, IntegerLinearProgram, Lagrangian, OuterApproximation, Solver
from mpq.solvers.additive import milp
from mpq.solvers.additive.default import solve_additive
from mpq.solvers.additive.pulp_backend import Way, run
from mpq.solvers.proofs import best_known, checked, rounding
from mpq.solvers.quadratic import additive_start, outer_approximation
from mpq.solvers.queries.alternatives import alternatives
from mpq.solvers.queries.ask import ask
from mpq.solvers.queries.frontier import solve_frontier
from scripts.proofs import exhaustive, random_problem, solvers_of, wrong_claims

LAYERS = ("l0", "l1", "l2")
PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w8a8")))
ADDITIVE = ("ilp:backend=HiGHS", "ilp:backend=CBC", "lagrangian", "dynamic-programming")
Run = Callable[..., float | None]
Make = Callable[..., Problem]


def small_problem(num_budgets: int = 2, with_pairs: bool = False) -> Problem:
    """Optimum 2 + 6 + 3 = 11 at columns (1, 1, 2), where each budget is used up."""
    losses = np.array([[9.0, 2.0, 0.0], [9.0, 6.0, 0.0], [9.0, 6.0, 3.0]])
    costs = np.array([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0], [1.0, 2.0, 3.0]])
    pairs = (PairwiseCost("l0", "l1", np.eye(3)),) if with_pairs else ()
    budgets = tuple(
        Budget.of(CostTable(f"r{i}", "bytes", LAYERS, PRECISIONS, costs, 0.0, pairs), 7.0 + i / 4)
        for i in range(num_budgets)
    )
    return Problem(CostTable("loss", "nats", LAYERS, PRECISIONS, losses), Constraints(budgets))


def lying(run: Run, is_liar: Callable[[Way], bool], bound: float) -> Run:
    """A backend that proves a bound, in the program's unit, whatever it finds."""

    def lies(model: Any, way: Way, *args: Any, **options: Any) -> float | None:
        proved = run(model, way, *args, **options)
        return bound if is_liar(way) else proved

    return lies


@pytest.mark.parametrize("solver", ["ilp", "lagrangian"])
@pytest.mark.parametrize(
    "is_liar",
    [lambda way: way.presolve, lambda way: way.backend == "HiGHS"],
    ids=["with presolve", "by HiGHS"],
)
def test_a_wrong_bound_is_solved_again_in_another_way(
    monkeypatch: pytest.MonkeyPatch, is_liar: Callable[[Way], bool], solver: str
) -> None:
    """Far above the loss that is known, it is not believed, and the next way is."""
    monkeypatch.setattr(milp, "run", lying(run, is_liar, 1e9))

    found = SOLVERS.build(solver).solve(small_problem())

    assert found.status is Status.OPTIMAL
    assert found.loss == found.bound == 11


def test_without_a_right_proof_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs of pairs are for integer programs alone: if all are wrong, nothing is returned."""
    monkeypatch.setattr(milp, "run", lying(run, lambda _: True, 1e9))

    with pytest.raises(SolverError, match="the integer program is wrong in .* ways"):
        IntegerLinearProgram().solve(small_problem(with_pairs=True))


def test_without_a_right_program_our_own_arithmetic_proves(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one budget ``lagrangian`` needs no integer program, and ``ilp`` asks it last."""
    monkeypatch.setattr(milp, "run", lying(run, lambda _: True, 1e9))

    found = IntegerLinearProgram().solve(small_problem(num_budgets=1))

    assert (found.status, found.loss, found.solver) == (Status.OPTIMAL, 11, "lagrangian")


def test_what_loses_more_than_is_proved_is_not_called_optimal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bound far below the answer, from a search that says it is finished, proves no optimum."""
    monkeypatch.setattr(milp, "run", lying(run, lambda _: True, -500.0))

    found = IntegerLinearProgram().solve(small_problem())

    assert found.status is Status.FEASIBLE
    assert found.loss == 11
    assert found.bound is not None
    assert found.bound < found.loss


def test_cuts_that_prove_too_much_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outer approximation takes no bound above the loss of the assignment that it has."""
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((5, 3, 3)).astype(np.float32)
    problem = replace(small_problem(1), interactions=Interactions(factor))
    wrong = lying(run, lambda _: True, 1e9)
    monkeypatch.setattr(outer_approximation, "run", wrong)
    monkeypatch.setattr(outer_approximation, "_ROOT_ROUNDS", 0)

    with pytest.raises(SolverError, match="outer-approximation is wrong: however it was solved"):
        OuterApproximation(gap=0.0).solve(problem)


CLAIMS = {
    "a bound": (Status.FEASIBLE, (1, 1, 1), 14.1, "it proved 14.1, .* known that loses 14"),
    "an optimum": (Status.OPTIMAL, (0, 1, 1), 2.0, "calls a loss of 21 the least, .* loses 14"),
    "that nothing is": (Status.INFEASIBLE, None, None, "impossible to meet, .* meets them"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_uniform_precision_contradicts(claim: str) -> None:
    """All layers at w4a8 lose 14 within the budgets, which needs no solver to know."""
    status, columns, bound, message = CLAIMS[claim]
    problem, answer = small_problem(), None if columns is None else np.array(columns)
    loss = float("nan") if answer is None else problem.loss_of(answer)

    with pytest.raises(SolverError, match=f"other is wrong, use another solver: .*{message}"):
        checked(problem, Solution(status, answer, loss, bound, "other", 0.0))


@pytest.mark.parametrize("bound", [14.0, 14.0 + 1e-9, None])
def test_rounding_is_no_contradiction(bound: float | None) -> None:
    """A last digit comes from other arithmetic; nothing proved is nothing claimed."""
    found = Solution(Status.FEASIBLE, np.array([1, 1, 1]), 14.0, bound, "other", 0.0)

    assert checked(small_problem(), found) is found


def test_a_large_cell_that_nobody_takes_hides_nothing() -> None:
    """A bound may be off by rounding of the numbers that are added up, not of all there are."""
    problem = small_problem()
    values = problem.loss.values.copy()
    values[0, 0] = 1e15
    found = Solution(Status.FEASIBLE, np.array([1, 1, 1]), 14.0, 14.1, "other", 0.0)

    with pytest.raises(SolverError, match=r"it proved 14\.1"):
        checked(replace(problem, loss=replace(problem.loss, values=values)), found)


class Answering(Solver):
    """Gives prepared answers, one after the other, each called the best."""

    name: ClassVar[str] = "answering"
    summary: ClassVar[str] = "for tests"

    def __init__(self, answers: Sequence[tuple[int, ...]]) -> None:
        self.answers = list(answers)

    def solve(self, problem: Problem) -> Solution:
        columns = np.array(self.answers.pop(0))
        return Solution(Status.OPTIMAL, columns, problem.loss_of(columns), None, self.name, 0.0)


def test_an_answer_that_breaks_a_budget_is_refused() -> None:
    """Also one from a solver of another package."""
    with pytest.raises(SolverError, match="'answering' answered with .* breaks a budget or rule"):
        ask(Answering([(2, 2, 2)]), small_problem())


def test_a_later_alternative_contradicts_an_earlier_one() -> None:
    """What differs from the first and loses less could have been the first: solved another way."""
    solver = Answering([(1, 1, 1), (1, 1, 2), (1, 1, 1)])

    found = alternatives(small_problem(), solver, 2)

    assert [solution.loss for solution in found] == [11, 14]
    assert found[0].status is Status.OPTIMAL
    assert "solved it again: answering, it calls a loss of 14 the least" in found[0].why


def test_alternatives_with_interactions_are_solved_again() -> None:
    """As without: another exact solver finds what the first one should have."""
    problem = replace(small_problem(), interactions=Interactions(np.zeros((1, 3, 3), np.float32)))
    solver = Answering([(1, 1, 1), (1, 1, 2), (1, 1, 1)])

    found = alternatives(problem, solver, 2)

    assert found[0].loss == pytest.approx(float(min(exhaustive(problem).losses.values())))
    assert "solved it again: answering, it calls a loss of 14 the least" in found[0].why


def test_a_cheaper_point_of_a_frontier_contradicts_a_dearer_one() -> None:
    """What is bought for less is there for more as well: the dearer one is solved another way."""
    problem = small_problem(num_budgets=1)
    table = problem.budgets[0].tables[0]
    # The best, the cheapest, then limits of 3, 6.33 and 9.67, of which the last is wrong.
    answers = [(2, 2, 2), (0, 0, 0), (0, 0, 0), (1, 1, 1), (0, 2, 1)]

    found, _ = solve_frontier(problem, table, Answering(answers), 4)

    wrong, best = problem.loss_of(np.array([0, 2, 1])), problem.loss_of(np.array([1, 1, 2]))
    assert wrong not in [problem.loss_of(columns) for columns in found]
    assert min(problem.loss_of(columns) for columns in found[:-1]) <= best


def test_a_wrong_optimum_of_highs(data_dir: Path) -> None:
    """HiGHS 1.16.0 calls 6,159,956.7 the least here; it is 62,492.2, as CBC says too."""
    file = data_dir / "problems" / "highs_wrong_optimum.json"
    if not file.exists():
        pytest.skip("the problem is not there")
    problem = Problem.from_json(file.read_text(encoding="utf-8"))

    for name in ("ilp", "ilp:backend=CBC", "lagrangian", "branch-and-bound", "outer-approximation"):
        found = SOLVERS.build(name).solve(problem)

        assert found.status is Status.OPTIMAL
        assert found.loss == pytest.approx(62492.20007420486, rel=1e-12)


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_claims_hold_over_24_decades(first: int) -> None:
    """Against exhaustive search in fractions; ``benchmarks/proofs`` has many more."""
    for seed in range(first, first + 20):
        problem = random_problem(seed)
        truth = exhaustive(problem)
        for name in solvers_of(seed, problem):
            try:
                found = SOLVERS.build(name).solve(problem)
            except InputError:
                continue

            assert wrong_claims(truth, found) == [], f"seed {seed}, {name}"


def test_room_that_is_smaller_than_the_rounding_of_its_limit() -> None:
    """Dynamic programming counted that rounding as room left over, and a better answer as worse."""
    problem = random_problem(5217)
    truth = exhaustive(problem)

    assert wrong_claims(truth, Lagrangian().solve(problem)) == []


@pytest.mark.parametrize("solver", ["lagrangian", "auto", "greedy"])
def test_a_multiplier_that_the_linear_program_puts_below_0(solver: str) -> None:
    """By a tolerance of its own, times a loss of 7e9: its bound was above the optimum."""
    problem = random_problem(8314)
    truth = exhaustive(problem)

    found = SOLVERS.build(solver).solve(problem)

    assert wrong_claims(truth, found) == []
    assert solver == "greedy" or found.status is Status.OPTIMAL


@pytest.mark.parametrize("solver", [*ADDITIVE, "auto", "branch-and-bound", "outer-approximation"])
def test_the_only_choice_that_is_cut_off_is_infeasible(solver: str) -> None:
    """Nothing is left to choose, so no variable that the cut could be written on."""
    problem = small_problem(num_budgets=1)
    fixed = replace(problem.constraints, fixed=dict.fromkeys(LAYERS, PRECISIONS[1]))
    only = replace(problem, constraints=fixed)
    if solver in ("branch-and-bound", "outer-approximation"):
        only = replace(only, interactions=Interactions(np.ones((2, 3, 3), dtype=np.float32)))

    before = SOLVERS.build(solver).solve(only)
    after = SOLVERS.build(solver).solve(only.differing(np.array([1, 1, 1]), 1))

    assert before.status is Status.OPTIMAL
    assert after.status is Status.INFEASIBLE
    assert after.columns is None


def test_a_limit_that_leaves_nothing_but_rounding_is_solved(make_problem: Any) -> None:
    """What is free is 0 in the user's unit, of which no cost is a whole multiple."""
    # The first layer uses the limit up to the last digit that `Budget.is_met` allows.
    costs = [[1.0 + LIMIT, 2.0], [0.0, 1e-18]]
    problem = make_problem([[1.0, 0.0], [1.0, 0.0]], [costs], [1.0])

    found = SOLVERS.build("dynamic-programming").solve(problem)

    assert found.columns is not None
    assert problem.is_feasible(found.columns)
    assert found.loss == Lagrangian().solve(problem).loss


@pytest.mark.parametrize("solver", ["branch-and-bound", "outer-approximation"])
def test_a_wrong_bound_of_the_sum_is_done_without(
    monkeypatch: pytest.MonkeyPatch, solver: str
) -> None:
    """The search with interactions begins with it, and again without where it contradicts."""
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((5, 3, 3)).astype(np.float32)
    problem = replace(small_problem(1), interactions=Interactions(factor, shrinkage=0.9))
    right = SOLVERS.build(solver).solve(problem)
    wrong = replace(solve_additive(problem), bound=1e3)
    monkeypatch.setattr(additive_start, "solve_additive", lambda _: wrong)

    found = SOLVERS.build(solver).solve(problem)

    assert found.loss == pytest.approx(right.loss)
    assert found.bound is not None
    assert found.bound <= found.loss


def test_a_bound_owes_what_the_last_digits_of_a_budget_buy() -> None:
    """Steps of 1e-6 in 7e6: what a sum rounds away is worth multipliers, and was proved lost."""
    losses = np.array(
        [
            [2.1504132544551170e-02, 1.3748445120831772e01],
            [1.1799635764642920e01, 1.0926923231119212e00],
            [1.5275864211586709e-03, 5.5750829294343696e-01],
            [2.9319633839715923e-02, 2.4169352588547109e-03],
            [2.1346307056330768e-02, 5.7463420727959225e-01],
            [1.2926198846650640e-02, 5.8510366877326334e01],
            [3.0103364151728869e02, 6.3238554652843585e-03],
        ]
    )
    steps = (
        [[2, 0], [0, 5], [3, 2], [5, 0], [1, 4], [5, 2], [4, 3]],
        [[2, 2], [0, 4], [4, 2], [0, 2], [1, 5], [5, 3], [3, 4]],
    )
    layers, choices = tuple(f"l{i}" for i in range(7)), PRECISIONS[:2]
    budgets = tuple(
        Budget.of(
            CostTable(f"r{limit}", "bytes", layers, choices, 1e6 + np.array(step) * 1e-6),
            7_000_000 + limit * 1e-6,
        )
        for step, limit in zip(steps, (17, 15), strict=True)
    )
    problem = Problem(CostTable("loss", "nats", layers, choices, losses), Constraints(budgets))

    found = ask(Lagrangian(), problem)

    assert found.status is Status.OPTIMAL
    assert found.loss == pytest.approx(float(min(exhaustive(problem).losses.values())), rel=1e-12)
    assert found.bound == pytest.approx(found.loss, rel=1e-12)


def test_what_a_proof_may_owe_to_arithmetic_is_counted_of_its_own_numbers(
    make_problem: Make,
) -> None:
    """The assignment's cells and the least of every layer, and not the largest of the table."""
    problem = make_problem([[1e9, 4.0, 1.0], [1e9, 5.0, 0.5]])

    found = rounding(problem, np.array([1, 1]))

    assert found == pytest.approx(PROVED_BOUND * (4.0 + 5.0 + 1.0 + 0.5), rel=1e-12)


def test_the_best_known_is_the_best_uniform_precision(make_problem: Make) -> None:
    """Of those within the budget; a layer that may not take it takes the first that it may."""
    loss = [[9.0, 4.0, 1.0], [6.0, 5.0, 0.5]]
    cost = [[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]

    assert known_of(make_problem(loss, [cost], [8.0])) == [2, 2]
    assert known_of(make_problem(loss, [cost], [8.0 * (1 - 1e-9)])) == [1, 1]
    assert known_of(make_problem(loss, [cost], [4.0])) == [1, 1]
    assert known_of(make_problem(loss, [cost], [3.9])) == [0, 0]
    assert known_of(make_problem(loss, [cost], [1.9])) is None
    without = [[1.0, 2.0, np.nan], [1.0, 2.0, 4.0]]
    assert known_of(make_problem(loss, [without], [6.0])) == [1, 1]
    assert known_of(make_problem([[1.0, 4.0, 9.0], [6.0, 5.0, 0.5]], [without], [6.0])) == [0, 2]


def known_of(problem: Problem) -> list[int] | None:
    """Columns of what is known without a solver."""
    found = best_known(problem)
    return None if found is None else found.tolist()
