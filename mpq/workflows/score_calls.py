"""How often the user's own score is asked in a search, and what that takes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, isfinite
from typing import Any, Final, Self, final

from mpq._support.durations import in_words
from mpq.problem.problem import Problem
from mpq.quantization.precision import ORIGINAL
from mpq.sensitivity import SensitivityEstimator
from mpq.sensitivity.weight_error import WeightError
from mpq.workflows.measuring_s import trials_s
from mpq.workflows.method import Method
from mpq.workflows.minimize import BISECTED
from mpq.workflows.other_answers import most_others
from mpq.workflows.score import Judge, Score
from mpq.workflows.setup import Prepared
from mpq.workflows.task import Task
from mpq.workflows.uniform import uniform_within

OF_PRICES: Final = "score of single layers"
OF_TRIALS: Final = "score of what the solver tries"
OF_ANSWERS: Final = "score of answers"


@final
@dataclass(frozen=True)
class PlannedCalls:
    """How often a score is asked, at most, and how long a call takes.

    Args:
        score: Its name.
        counts: Calls, by what they are for.
        call_s: Seconds of one.
        is_clocked: Whether that is what one call took, and not what the user says.
    """

    score: str
    counts: Mapping[str, int]
    call_s: float
    is_clocked: bool

    @classmethod
    def of(cls, judge: Judge, counts: Mapping[str, int]) -> Self:
        """Of a judge; what is never asked is left out."""
        asked = {name: count for name, count in counts.items() if count}
        return cls(judge.score.name, asked, judge.call_s, judge.score.call_s is None)

    @property
    def seconds(self) -> dict[str, float]:
        """By what they are for."""
        return {name: count * self.call_s for name, count in self.counts.items()}

    @property
    def sentence(self) -> str:
        """For people."""
        total, why = sum(self.counts.values()), "as one took" if self.is_clocked else "as told"
        parts = ", ".join(
            f"{count} {name.removeprefix('score ')}" for name, count in self.counts.items()
        )
        return (
            f"the score {self.score} is asked at most {total} times, {in_words(self.call_s)} each "
            f"({why}): {parts}; {in_words(total * self.call_s)} in all"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "score": self.score,
            "counts": dict(self.counts),
            "call_s": self.call_s,
            "is_clocked": self.is_clocked,
        }


@final
@dataclass(frozen=True, eq=False)
class ScoreCalls:
    """A search that asks a score.

    Args:
        score: The user's own.
        method: How the search is done.
        num_points: Assignments that are measured after it, as those of a frontier.
    """

    score: Score
    method: Method
    num_points: int = 0

    @classmethod
    def of(cls, task: Task, method: Method, num_points: int = 0) -> Self | None:
        """Of a task that has one."""
        return None if task.own_score is None else cls(task.own_score, method, num_points)

    def without(self, method: Method) -> Method:
        """The same method where the estimate asks no score; other estimates stay."""
        is_asking = method.estimator.asks_score
        return replace(method, estimator=WeightError()) if is_asking else method

    def planned(self, prepared: Prepared, judge: Judge, problem: Problem) -> PlannedCalls:
        """All calls, at most; of a solver that measures, as far as it says how many.

        Args:
            prepared: Layers and candidates are known.
            judge: Who is asked; where no time of a call is told, about the original.
            problem: With the limits; its losses do not count.
        """
        counts = {
            OF_PRICES: num_cells(prepared, self.method.estimator),
            OF_TRIALS: self._by_solver(problem),
            OF_ANSWERS: self._answers(prepared, len(uniform_within(problem))),
        }
        return PlannedCalls.of(judge, counts)

    def _by_solver(self, problem: Problem) -> int:
        solver = self.method.solver
        if not solver.is_measuring:
            return 0
        # A limit on its time says nothing of how many.
        call_s = self.score.call_s or 1.0
        seconds = trials_s(solver, call_s, problem)
        return ceil(seconds / call_s - 1e-9) if isfinite(seconds) else 0

    def _answers(self, prepared: Prepared, num_uniform: int) -> int:
        task, objective = prepared.task, self.method.objective
        # The original and the answer, and every uniform precision as it stands beside them.
        calls = 2 + max(len(prepared.candidates), num_uniform) + self.num_points
        if self.method.safeguard and not self.method.solver.is_measuring:
            calls += most_others(prepared)
        elif self.method.safeguard:
            # A uniform precision in the answer's place, on the examples that the solver looks at.
            calls += self.score.reads_examples
        if objective is not None and objective.max_loss is None:
            calls += BISECTED
        # Codes and ranges of the answer alone are judged again.
        calls += task.sequential_rounding or task.recalibrate
        # With its biases corrected; before and after it is tuned.
        calls += task.bias_correction + 2 * (task.tune is not None)
        return calls + (1 + self.method.rounds if self.method.rounds else 0)


def num_cells(prepared: Prepared, estimator: SensitivityEstimator) -> int:
    """Layers with a precision that an estimator asks the task's own score of."""
    names = tuple(layer.name for layer in prepared.network.layers)
    return estimator.num_scored(names) * sum(p != ORIGINAL for p in prepared.candidates)
