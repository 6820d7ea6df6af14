"""What solvers prove, against exhaustive search in fractions: problems over 24 decades.

    python -m scripts.proofs 10000 > benchmarks/proofs.json

Small problems with losses and costs of up to 24 decades in one table, where the tolerances of an
integer program can hide an answer. They are solved by the exact solvers, and every claim is
compared with all assignments, added up in ``fractions.Fraction``: nothing here shares code with the
solvers. Prints JSON: the versions, and for every solver how it ended and which claims were wrong.
"""

import argparse
import json
import platform
import sys
import time
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version
from itertools import chain, product
from math import inf, lcm
from typing import Any

import numpy as np

from mpq.errors import InputError, SolverError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.problem.cut import Cut
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.quantization.precision import Precision
from mpq.solvers import SOLVERS

OFTEN = ("ilp:backend=HiGHS", "lagrangian")
"""Solve every problem; what one does not take, it refuses by name."""
SELDOM = ("ilp:backend=CBC", "lagrangian:backend=CBC", "dynamic-programming")
"""Solve every twentieth, as they do without HiGHS or begin with one of those."""
QUADRATIC = ("branch-and-bound", "outer-approximation")
"""Solve those with interactions."""
PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w3a8", "w4a8", "w8a8")))
CLOSE = Fraction(1, 10**9)
"""Of the best loss, and of the least that every layer loses: what an optimum may be off by."""
Columns = tuple[int, ...]


def random_problem(seed: int) -> Problem:
    """Few layers, up to three budgets, cells that cannot run, ties, pairs and cuts."""
    rng = np.random.default_rng(seed)
    num_layers, num_precisions = int(rng.integers(2, 7)), int(rng.integers(2, 4))
    shape = num_layers, num_precisions
    layers, precisions = tuple(f"l{i}" for i in range(num_layers)), PRECISIONS[:num_precisions]
    half = float(rng.choice([12.0, 12.0, 12.0, 6.0, 3.0]))  # of the decades
    losses = 10.0 ** rng.uniform(-half, half, shape)
    target = rng.integers(num_precisions, size=num_layers)
    ties = ((layers[0], layers[-1]),) if rng.random() < 0.2 else ()
    if ties:
        target[-1] = target[0]
    budgets = []
    for row in range(int(rng.integers(1, 4))):
        values = 10.0 ** (rng.uniform(-half, half, shape) + rng.uniform(-12, 12))
        cannot_run = rng.random(shape) < 0.1
        cannot_run[range(num_layers), target] = False
        values[cannot_run] = np.nan
        pairs: tuple[PairwiseCost, ...] = ()
        if rng.random() < 0.1:
            joint = values[0, target[0]] * 10.0 ** rng.uniform(-3, 3, (num_precisions,) * 2)
            pairs = (PairwiseCost(layers[0], layers[1], joint),)
        table = CostTable(f"r{row}", "bytes", layers, precisions, values, 0.0, pairs)
        limit = table.total(target) * float(rng.choice([1.0, 1.0, 1 + 1e-6, 2.0, 10.0]))
        budgets.append(Budget.of(table, limit * (0.5 if rng.random() < 0.02 else 1.0)))
    cuts = (Cut(target, int(rng.integers(1, 3))),) if rng.random() < 0.1 else ()
    interactions = None
    if rng.random() < 0.015:
        factor = 10.0 ** rng.uniform(-half / 4, half / 4, (2, *shape)) * rng.choice([-1, 1], shape)
        interactions = Interactions(factor.astype(np.float32))
        losses = np.array(interactions.alone)
    loss = CostTable("loss", "nats", layers, precisions, losses)
    return Problem(loss, Constraints(tuple(budgets), ties), interactions, cuts=cuts)


@dataclass(frozen=True)
class Truth:
    """What trying everything says.

    Args:
        losses: Of every feasible assignment.
        scale: Numbers that the least loss is made of, without signs.
    """

    losses: dict[Columns, Fraction]
    scale: Fraction

    @property
    def best(self) -> Fraction | None:
        """Least loss of all that is feasible; ``None`` if nothing is."""
        return min(self.losses.values(), default=None)


def exhaustive(problem: Problem) -> Truth:
    """Every assignment, by the rule that ``mpq.problem.tolerances`` states."""
    shape = problem.loss.values.shape
    every = list(product(range(shape[1]), repeat=shape[0]))
    losses = totals(problem.loss, every)
    if problem.interactions is not None:
        losses = [a + b for a, b in zip(losses, excesses(problem.interactions, every), strict=True)]
    is_feasible = [_keeps_rules(problem, columns) for columns in every]
    for budget in problem.budgets:
        for table in budget.tables:
            most = budget.limit + 1e-12 * abs(budget.limit)
            cannot_run = np.isnan(table.values)
            empty = cannot_run[np.arange(shape[0]), np.array(every)].any(axis=1).tolist()
            for index, used in enumerate(totals(table, every)):
                if empty[index] or used.numerator / used.denominator > most:
                    is_feasible[index] = False  # divided: to the nearest float64, as the rule says
    found = {c: loss for c, loss, ok in zip(every, losses, is_feasible, strict=True) if ok}
    least = sum((Fraction(float(np.abs(row).min())) for row in problem.loss.values), Fraction(0))
    best = min(found, key=lambda columns: found[columns], default=None)
    alone = Fraction(0) if best is None else sum(_cells(problem.loss, best), Fraction(0))
    return Truth(found, abs(least) + abs(alone))


def totals(table: CostTable, every: list[Columns]) -> list[Fraction]:
    """What each of all assignments costs, exactly; cells that cannot run cost nothing here."""
    cells = [list(map(Fraction, row)) for row in np.nan_to_num(table.values).tolist()]
    joints = [[list(map(Fraction, row)) for row in pair.values.tolist()] for pair in table.pairs]
    flat = [Fraction(table.constant), *chain(*cells), *chain(*chain(*joints))]
    # Numerators over one denominator: sums of whole numbers are as exact, and quick.
    scale = lcm(*(cell.denominator for cell in flat))
    sums = [int(Fraction(table.constant) * scale)]
    for row in cells:
        whole = [int(cell * scale) for cell in row]
        sums = [before + cell for before in sums for cell in whole]  # in the order of `product`
    row_of = {name: row for row, name in enumerate(table.layers)}
    for pair, joint in zip(table.pairs, joints, strict=True):
        one, other = row_of[pair.first], row_of[pair.second]
        both = [[int(cell * scale) for cell in row] for row in joint]
        sums = [s + both[c[one]][c[other]] for s, c in zip(sums, every, strict=True)]
    return [Fraction(number, scale) for number in sums]


def excesses(interactions: Interactions, every: list[Columns]) -> list[Fraction]:
    """What all layers lose together beside the sum of what each loses alone."""
    samples = [[list(map(Fraction, row)) for row in rows] for rows in interactions.factor.tolist()]
    found = []
    for columns in every:
        cells = [[row[c] for row, c in zip(rows, columns, strict=True)] for rows in samples]
        together = sum((sum(one, Fraction(0)) ** 2 for one in cells), Fraction(0))
        alone = sum((cell**2 for one in cells for cell in one), Fraction(0))
        share = Fraction(1 - interactions.shrinkage) / (2 * len(samples))
        found.append(share * (together - alone))
    return found


def _cells(table: CostTable, columns: Columns) -> list[Fraction]:
    return [Fraction(float(table.values[row, c])) for row, c in enumerate(columns)]


def _keeps_rules(problem: Problem, columns: Columns) -> bool:
    if not problem.ties and not problem.cuts:
        return True
    row_of = {name: row for row, name in enumerate(problem.loss.layers)}
    ties = all(len({columns[row_of[name]] for name in tie}) == 1 for tie in problem.ties)
    return ties and all(
        sum(a != b for a, b in zip(columns, cut.columns.tolist(), strict=True)) >= cut.num_layers
        for cut in problem.cuts
    )


def wrong_claims(truth: Truth, solution: Solution) -> list[str]:
    """What a solution says that is not so; empty if all of it holds."""
    if truth.best is None:
        return [] if solution.columns is None else ["feasible where nothing is"]
    slack = CLOSE * truth.scale
    wrong = []
    if solution.status is Status.INFEASIBLE:
        wrong.append("infeasible where something is feasible")
    if solution.bound is not None and Fraction(solution.bound) > truth.best + slack:
        wrong.append("a bound above the optimum")
    if solution.columns is not None:
        loss = truth.losses.get(tuple(solution.columns.tolist()))
        if loss is None:
            return [*wrong, "an answer that is not feasible"]
        if abs(Fraction(solution.loss) - loss) > slack:
            wrong.append("another loss than its assignment's")
        if solution.status is Status.OPTIMAL and loss > truth.best + slack:
            wrong.append("optimal where something is better")
    return wrong


def solvers_of(seed: int, problem: Problem) -> tuple[str, ...]:
    """Those that solve a problem."""
    if problem.interactions is not None:
        return QUADRATIC
    return OFTEN if seed % 20 else (*OFTEN, *SELDOM)


def answered(name: str, problem: Problem, truth: Truth) -> tuple[str, list[str]]:
    """How a solver ended, and its wrong claims; an error that says so claims nothing."""
    try:
        solution = SOLVERS.build(name).solve(problem)
    except InputError:
        return "refused", []
    except SolverError as error:
        return "failed", [] if "is wrong" in str(error) else [str(error)]
    return solution.status.name.lower(), wrong_claims(truth, solution)


def main() -> None:
    """Solve random problems, and print what was claimed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, help="problems, of the seeds from 0 on")
    parser.add_argument("--minutes", type=float, default=inf, help="where to stop before the last")
    options = parser.parse_args()
    ended = {name: Counter[str]() for name in (*OFTEN, *SELDOM, *QUADRATIC)}
    wrong: list[dict[str, Any]] = []
    start = time.perf_counter()
    done = 0
    for seed in range(options.count):
        if time.perf_counter() - start > 60 * options.minutes:
            break
        problem = random_problem(seed)
        truth = exhaustive(problem)
        for name in solvers_of(seed, problem):
            how, claims = answered(name, problem, truth)
            ended[name][how] += 1
            if claims:
                wrong.append({"seed": seed, "solver": name, "claims": claims})
                print(f"seed {seed}: {name}: {'; '.join(claims)}", file=sys.stderr)
        done = seed + 1
        if done % 500 == 0:
            print(f"{done} problems", file=sys.stderr)
    printed = {
        "command": " ".join(["python -m scripts.proofs", *sys.argv[1:]]),
        "versions": {name: version(name) for name in ("highspy", "pulp", "numpy", "scipy")},
        "python": platform.python_version(),
        "problems": done,
        "seconds": round(time.perf_counter() - start),
        "ended": ended,
        "wrong_claims": wrong,
    }
    print(json.dumps(printed, indent=1))


if __name__ == "__main__":
    main()
