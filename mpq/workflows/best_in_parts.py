"""Which answer in parts goes on, or that of whole layers: held-out examples say."""

from collections.abc import Sequence

from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.report.safeguard import AnswerCheck, Excess, Verdict
from mpq.workflows.coupled_rows import round_parts
from mpq.workflows.optimism import is_too_low
from mpq.workflows.other_answers import is_for_other
from mpq.workflows.setup import Prepared
from mpq.workflows.uniform import uniform_within


def best_in_parts(
    prepared: Prepared,
    divided: Sequence[tuple[Problem, Solution]],
    problem: Problem,
    solution: Solution,
) -> tuple[Problem, Solution, AnswerCheck]:
    """Of answers in parts the one that loses least on held-out examples, unless it is worse.

    Where codes fit too few examples to be priced by them (``mpq.workflows.optimism``), unless it is
    not better: the more there is to choose, the more an answer fits the same examples.

    Args:
        prepared: Network, prices and examples.
        divided: Problems of parts and their answers.
        problem: That of whole layers.
        solution: Its answer.

    Returns:
        The problem and its answer, and the answers beside each other.
    """
    chosen = [inside.precisions(asked) for asked, inside in divided]
    round_parts(prepared, chosen)
    measured = prepared.on_held_out.measure
    losses = [measured(precisions).by_example for precisions in chosen]
    best = min(range(len(losses)), key=lambda place: float(losses[place].mean()))
    beside = [measured(solution.precisions(problem)).by_example]
    uniform = uniform_within(problem).values()
    beside += [measured(problem.precisions_of(columns)).by_example for columns in uniform]
    gain = Excess.of(beside[0], losses[best])
    is_worse = any(_is_worse(Excess.of(losses[best], other)) for other in beside)
    is_worse |= is_too_low(prepared.rounded.optimism) and not is_for_other(gain)
    check = AnswerCheck(gain, not is_worse)
    return (problem, solution, check) if is_worse else (*divided[best], check)


def _is_worse(excess: Excess) -> bool:
    return excess.verdict is Verdict.WORSE and excess.is_on_most
