"""What is made for an answer alone, after the solver: codes and ranges of its own."""

from dataclasses import dataclass, replace
from typing import Final, final

from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.workflows.minimize import Accepts
from mpq.workflows.recalibration import Recalibrating, Recalibration
from mpq.workflows.sequential_rounding import SequentialRounding, round_again
from mpq.workflows.setup import Prepared


@final
@dataclass(frozen=True)
class Finish:
    """What became of that.

    Args:
        sequential: What rounding the answer again gave; ``None``: it was not asked for.
        recalibration: What choosing its ranges again gave; ``None``: it was not asked for.
    """

    sequential: SequentialRounding | None = None
    recalibration: Recalibration | None = None


AS_FOUND: Final = Finish()
"""Nothing was asked for."""


def finished(prepared: Prepared, problem: Problem, solution: Solution, accepts: Accepts) -> Finish:
    """The answer's weights in the order of calls, then its ranges, as far as that is asked for."""
    task, columns = prepared.task, solution.columns
    assert columns is not None
    precisions, own = solution.precisions(problem), prepared.own_codes
    sequential = recalibration = None
    if task.sequential_rounding:
        # One process does it, whoever else has shared the estimate.
        sequential = round_again(
            replace(prepared.asked, ranks=None), precisions, task.weight_rounding, task.seed, own,
            lambda: accepts(columns), prepared.kept_codes,
        )  # fmt: skip
    if task.recalibrate:
        recalibration = Recalibrating(
            prepared.network, prepared.calibration, prepared.quantizer,
            prepared.calibrated.methods, precisions, task.seed,
        ).kept(own, lambda: accepts(columns))  # fmt: skip
    return Finish(sequential, recalibration)
