"""What calls of the user's own score take in a search."""

from dataclasses import dataclass, replace
from math import isfinite
from time import perf_counter
from typing import Self, final

from mpq.network.modules import share_parameters
from mpq.sensitivity.weight_error import WeightError
from mpq.workflows.method import Method
from mpq.workflows.score import Judge, Score
from mpq.workflows.setup import Prepared
from mpq.workflows.task import Task


@final
@dataclass(frozen=True, eq=False)
class ScoreCalls:
    """A search that asks a score.

    Args:
        score: The user's own.
        method: How the search is done.
    """

    score: Score
    method: Method

    @classmethod
    def of(cls, task: Task, method: Method) -> Self | None:
        """Of a task that has one."""
        return None if task.own_score is None else cls(task.own_score, method)

    @property
    def _prices(self) -> bool:
        return self.method.estimator.asks_score

    def without(self, method: Method) -> Method:
        """The same method where the estimate asks no score; other estimates stay."""
        return replace(method, estimator=WeightError()) if self._prices else method

    def seconds(self, prepared: Prepared, num_uniform: int) -> float:
        """Of all calls; of a solver that measures, as far as it says how many.

        Args:
            prepared: Layers and candidates are known.
            num_uniform: Uniform precisions within the limits.
        """
        call_s = self.score.call_s or self._clocked(prepared)
        # The original and the answer, and every uniform precision as it stands beside them.
        calls = 2 + max(len(prepared.candidates), num_uniform)
        if self._prices:
            calls += len(prepared.network.layers) * len(prepared.asked.tried)
        by_solver = self.method.solver.measuring_s(call_s) if self.method.solver.is_measuring else 0
        return calls * call_s + (by_solver if isfinite(by_solver) else 0.0)

    def _clocked(self, prepared: Prepared) -> float:
        start = perf_counter()
        judge = Judge(self.score, prepared.held_out, share_parameters(prepared.task.model))
        _ = judge.original
        return perf_counter() - start
