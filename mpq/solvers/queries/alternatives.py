"""Several good assignments instead of one: to be tried on what really counts."""

from mpq._support.bounds import check_whole
from mpq._support.progress import track
from mpq.errors import InputError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.solvers import Solver
from mpq.solvers.queries.ask import ask, believed


def alternatives(
    problem: Problem, solver: Solver, count: int, min_differing_layers: int = 1
) -> tuple[Solution, ...]:
    """The best assignments, each unlike all before it.

    A predicted loss is a prediction; MixDQ (Zhao et al. 2024, arXiv:2405.17873) tries several of
    the best configurations on the real metric. "Differs in at least d layers" is a linear budget,
    so that an exact solver proves every one of them: with ``min_differing_layers=1`` these are
    the ``count`` best.

    Args:
        problem: Its budgets, ties and fixed layers hold for all.
        solver: Solves the problem again for every assignment.
        count: At most so many.
        min_differing_layers: In how many layers any two of them differ at least.

    Returns:
        By rising loss; fewer than ``count`` where there are no more. The first one may be
        infeasible, and is then the only one.

    Raises:
        InputError: If a number is below 1, or rows are parts of layers.
        SolverError: If an assignment is better than one that was called the best before it, and
            no other way of solving that finds it.
    """
    if count < 1 or min_differing_layers < 1:
        raise InputError(
            "alternatives need a count and a number of differing layers of at least 1; got "
            f"{count} and {min_differing_layers}"
        )
    if problem.parts is not None:
        raise InputError(
            "alternatives differ in whole layers, and these are divided: search without split "
            "(--split)"
        )
    asked: list[Problem] = []
    found: list[Solution] = []
    check_whole("alternatives", count)
    bar = iter(track(range(count), "alternatives"))
    while len(found) < count:
        next(bar, None)  # not its end: what is solved again takes more steps than there are answers
        solution = ask(solver, problem)
        if solution.columns is None:
            # After others it only says that there are no more, which is no answer of its own.
            found = found or [solution]
            break
        # What differs from all before it could have been the answer each time.
        for index, (earlier, before) in enumerate(zip(asked, found, strict=True)):
            right = believed(earlier, before, solution.columns)
            if right is not before and right.columns is not None:
                # All after it differ from what was no answer.
                problem, solution = earlier, right
                del asked[index:], found[index:]
                break
        asked.append(problem)
        found.append(solution)
        assert solution.columns is not None
        problem = problem.differing(solution.columns, min_differing_layers)
    # A solver that is not exact may find a better one after a worse one.
    return tuple(sorted(found, key=lambda solution: solution.loss))
