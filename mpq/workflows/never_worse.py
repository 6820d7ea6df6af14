"""An answer is never worse than a uniform precision that meets the same budgets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mpq._support.arrays import Columns
from mpq._support.progress import track
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.quantization.precision import Precision
from mpq.report.frontier import FrontierPoint
from mpq.report.measurement import Measurement
from mpq.report.safeguard import Excess, Safeguard, UniformCheck, Verdict
from mpq.report.score_check import ScoreCheck
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.score import Judge
from mpq.workflows.setup import Prepared
from mpq.workflows.uniform import uniform_within


def never_worse(
    prepared: Prepared,
    problem: Problem,
    solution: Solution,
    accepts: Callable[[Columns], bool] = lambda _: True,
) -> tuple[Solution, Safeguard]:
    """The solution, or the uniform precision that is measured to be better on all sets asked.

    Held-out examples are asked always, those of calibration unless weights were rounded to fit
    them. Where the task has a score of its own, that is asked alone.

    A prediction may fail without anybody noticing; a uniform precision is what a user would take
    without us. Takes a forward pass over the calibration and the held-out examples for the answer
    and for every uniform precision within the budgets.

    Args:
        prepared: Measures on calibration and on held-out examples.
        problem: The problem that was solved.
        solution: Its solution, with an assignment.
        accepts: Whether a choice ``[L]`` meets what else is asked than budgets, as an objective's
            limit on the loss.
    """
    assert solution.columns is not None
    found = uniform_within(problem)
    others = {
        p: c for p, c in found.items() if not np.array_equal(c, solution.columns) and accepts(c)
    }
    judge = prepared.on_held_out.judge
    if judge is not None:
        return _by_score(prepared.on_held_out, judge, problem, solution, others)
    if not others:
        return solution, Safeguard()
    answer = _measured(prepared, problem, solution.columns)
    checks = []
    for precision, columns in track(list(others.items()), "uniform precisions"):
        pairs = zip(answer, _measured(prepared, problem, columns), strict=True)
        held_out, *calibration = (Excess.of(a.by_example, u.by_example) for a, u in pairs)
        checks.append(UniformCheck(str(precision), next(iter(calibration), None), held_out))
    worse = [check for check in checks if check.verdict is Verdict.WORSE]
    if not worse:
        return solution, Safeguard(tuple(checks))
    best = max(worse, key=lambda check: check.total)
    columns = others[Precision.parse(best.precision)]
    uniform = replaced(problem, solution, columns, f"uniform {best.precision}")
    return uniform, Safeguard(tuple(checks), best.precision)


def _by_score(
    evaluator: Evaluator,
    judge: Judge,
    problem: Problem,
    solution: Solution,
    others: Mapping[Precision, Columns],
) -> tuple[Solution, Safeguard]:
    def score(columns: Columns) -> float:
        found = evaluator.measure(problem.precisions_of(columns)).score
        assert found is not None  # there is a judge
        return found

    assert solution.columns is not None
    answer = score(solution.columns)
    tried = track(list(others.items()), "uniform precisions")
    uniform = {str(precision): score(columns) for precision, columns in tried}
    check = ScoreCheck(judge.score.name, judge.original, answer, uniform)
    best = min(others, key=lambda p: judge.drop(uniform[str(p)]), default=None)
    if best is None or not judge.drop(uniform[str(best)]) < judge.drop(answer):
        return solution, Safeguard(score=check)
    found = replaced(problem, solution, others[best], f"uniform {best}")
    return found, Safeguard(replaced_by=str(best), score=check)


def never_worse_points(
    prepared: Prepared, points: Sequence[FrontierPoint], others: Sequence[FrontierPoint]
) -> tuple[FrontierPoint, ...]:
    """Measured points of a frontier, corrected by uniform precisions.

    One that is better than a point and costs no more takes its place; one that is better than all
    points that cost no more, between them or beyond the last, is a point too.

    Args:
        prepared: Measures on calibration and on held-out examples.
        points: By cost, measured on held-out examples.
        others: What stands beside them, measured; the uniform precisions among them count where
            they stay within the other budgets.
    """
    # The result itself may be uniform; the precision under its own name is the better label.
    uniform = [x for x in others if x.label != "result" and x.meets_others]
    kept: dict[tuple[float, str], FrontierPoint] = {}
    for point in points:
        better = [u for u in uniform if u.cost <= point.cost and _is_better(prepared, u, point)]
        # The best of those that are better on both sets; a uniform precision is one point.
        found = min(better, key=lambda u: _loss(prepared, u), default=point)
        label = point.label if found is point else f"frontier (uniform {found.label})"
        kept.setdefault((found.cost, str(found.precisions)), replace(found, label=label))
    if not uniform:
        return tuple(kept.values())  # as alternatives are, which are by rank
    # By cost, as a uniform precision that came in betters what costs more than it. A cost of nan
    # is one that the device cannot run.
    for u in sorted((u for u in uniform if u.cost == u.cost), key=lambda u: u.cost):
        cheaper = [point for point in kept.values() if point.cost <= u.cost]
        if all(_is_better(prepared, u, point) for point in cheaper):
            # Of equal costs the better one alone is on the frontier.
            kept = {key: point for key, point in kept.items() if point.cost != u.cost}
            label = f"frontier (uniform {u.label})"
            kept[u.cost, str(u.precisions)] = replace(u, label=label)
    return tuple(sorted(kept.values(), key=lambda point: point.cost))


def _loss(prepared: Prepared, point: FrontierPoint) -> float:
    assert point.measured is not None
    return prepared.on_held_out.loss(point.measured)


def _is_better(prepared: Prepared, uniform: FrontierPoint, point: FrontierPoint) -> bool:
    # First what is known already: only a point that loses more on held-out examples is looked at.
    if _loss(prepared, uniform) >= _loss(prepared, point):
        return False
    if prepared.on_held_out.judge is not None:
        return True
    pairs = ((s.measure(point.precisions), s.measure(uniform.precisions)) for s in _asked(prepared))
    held_out, *calibration = (Excess.of(p.by_example, u.by_example) for p, u in pairs)
    check = UniformCheck(uniform.label, next(iter(calibration), None), held_out)
    return check.verdict is Verdict.WORSE


def _asked(prepared: Prepared) -> list[Evaluator]:
    """On held-out examples, and on calibration examples that no codes were made to fit."""
    found = [prepared.on_held_out]
    return found if prepared.rounded.stored else [*found, prepared.on_calibration]


def _measured(prepared: Prepared, problem: Problem, columns: Columns) -> list[Measurement]:
    """What a choice loses, on each of the sets that are asked."""
    precisions = problem.precisions_of(columns)
    return [evaluator.measure(precisions) for evaluator in _asked(prepared)]


def replaced(problem: Problem, first: Solution, columns: Columns, by: str) -> Solution:
    """A solution with another choice ``[L]`` in its place, and what that was replaced by."""
    loss = problem.loss_of(columns)
    return replace(
        first,
        # It is no optimum of the predicted loss, which has been shown to be wrong.
        status=Status.FEASIBLE,
        columns=columns,
        loss=loss,
        bound=None if first.bound is None else min(first.bound, loss),
        solver=f"{first.solver}, replaced by {by}",
    )
