"""What a solver found, and what it proved."""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, final

from mpq._support.arrays import Columns
from mpq.problem.problem import Problem
from mpq.problem.tolerances import is_within
from mpq.quantization.precision import Precision

_NOTABLE: Final = 0.2
"""Share of a limit from which a constant is told: below it, other precisions matter more."""


class Status(Enum):
    """How a solver ended, in a sentence for the user."""

    OPTIMAL = "optimal: no assignment within the budgets has a smaller predicted loss"
    FEASIBLE = "feasible: within the budgets, but not proved to be the best"
    TIME_LIMIT = "out of time: the best assignment found so far"
    INFEASIBLE = "infeasible: no assignment meets the budgets"
    UNKNOWN = "unknown: stopped before finding an assignment"

    @property
    def in_short(self) -> str:
        """What the sentence begins with, for a table.

        >>> Status.TIME_LIMIT.in_short
        'out of time'
        """
        return self.value.partition(":")[0]


@final
@dataclass(frozen=True)
class Shortfall:
    """Why a budget cannot be met.

    Args:
        resource: Name of the resource that the budget limits.
        unit: Unit of ``limit`` and of both smallest amounts.
        limit: The largest amount that the budget allows.
        smallest: The least that any assignment uses, whatever it uses of the others.
        smallest_within_others: The least that an assignment within all other budgets uses;
            ``None`` if the others cannot be met either.
        step: Step, of a resource that is a maximum over steps, the one that needs most; else empty.
        constant: What the network takes besides its layers, at any precision; of a sum over layers.
    """

    resource: str
    unit: str
    limit: float
    smallest: float
    smallest_within_others: float | None
    step: str = ""
    constant: float = 0.0

    @property
    def is_constant_notable(self) -> bool:
        """Whether the budget cannot be met, and much of it goes to what no precision changes."""
        if not self.constant or is_within(self._reach, self.limit):
            return False
        # Savings of pairs lead below 0, where any constant is more than the limit.
        is_above = not is_within(self.constant, self.limit)
        return is_above or self.constant > _NOTABLE * self.limit

    @property
    def _reach(self) -> float:
        # What differs by rounding only is one amount; a second number would puzzle the reader.
        held = self.smallest_within_others
        return self.smallest if held is None or is_within(held, self.smallest) else held

    def __str__(self) -> str:
        text = f"{self.resource} (at {self.step})" if self.step else self.resource
        text += f": limit {self._shown(self.limit)} {self.unit}"
        text += f", smallest reachable {self._shown(self.smallest)}"
        reach = self._reach
        if reach > self.smallest:
            text += f" ({self._shown(reach)} while the other budgets hold)"
        if is_within(reach, self.limit):
            return f"{text}: can be met alone"
        text += f": {self._shown(reach - self.limit)} {self.unit} too much"
        if self.is_constant_notable:
            taken = f"{self._shown(self.constant)} {self.unit}"
            text += f"; what is not in the layers takes {taken} at any precision"
            if not is_within(self.constant, self.limit):
                text += ", more than the limit by itself"
        return text

    def _shown(self, amount: float) -> str:
        # Of a file each byte can be meant; six digits tell seconds from each other.
        return f"{amount:.0f}" if self.unit == "bytes" and amount >= 1e6 else f"{amount:.6g}"


@final
@dataclass(frozen=True, eq=False)
class Solution:
    """The answer to a ``Problem``.

    Args:
        status: How the solver ended, and so what ``loss`` and ``bound`` are worth.
        columns: ``[L]`` column per layer, or ``None`` if there is none.
        loss: Its predicted loss by the problem's own arithmetic; ``nan`` without a choice.
        bound: No allowed assignment has a smaller predicted loss than this; ``None``: not proved.
        solver: Name of the solver, with its backend.
        seconds: Wall time of the solver; ``nan`` where it is not known.
        shortfalls: One per budget if the problem is infeasible.
        conflict: If it is infeasible, resources whose budgets cannot be met together, though they
            could without any one of them.
        why: Why this solver was taken, where one was picked; or why there is no assignment.
    """

    status: Status
    columns: Columns | None
    loss: float
    bound: float | None
    solver: str
    seconds: float
    shortfalls: tuple[Shortfall, ...] = ()
    conflict: tuple[str, ...] = ()
    why: str = ""

    @property
    def failure(self) -> str:
        """Solver and status, and why where that is known: for errors."""
        reason = f" ({self.why})" if self.why else ""
        return f"{self.solver}: {self.status.value}{reason}"

    @property
    def gap(self) -> float | None:
        """``(loss - bound) / |loss|``, at least 0; ``None`` where nothing is proved."""
        if self.bound is None or self.columns is None:
            return None
        # Bounds come from other arithmetic (HiGHS, a Lagrangian) and may pass the loss by rounding.
        rise = max(self.loss - self.bound, 0.0)
        # A loss of 0 has no relative distance; the absolute one is 0 as well where it is proved.
        return rise / abs(self.loss) if self.loss else rise

    @property
    def reasons(self) -> str:
        """Of an infeasible problem: what every budget would need, and which of them conflict."""
        found = "; ".join(map(str, self.shortfalls)) or "no budget can be blamed"
        # A single budget that cannot be met has said so by its shortfall.
        if len(self.conflict) > 1:
            found += f". {' and '.join(self.conflict)} cannot be met together"
        return found

    def precisions(self, problem: Problem) -> dict[str, Precision]:
        """Layer name to precision, in the problem's order; a solution without a choice has none."""
        return {} if self.columns is None else problem.precisions_of(self.columns)


def record(problem: Problem, solution: Solution) -> dict[str, Any]:
    """JSON-ready: the assignment with its loss, bound, budgets, and how it was found."""
    assert solution.columns is not None
    return {
        # The member's name: files are read by it, while the sentence may be reworded.
        "status": solution.status.name.lower(),
        "solver": solution.solver,
        "why": solution.why,
        f"predicted_loss_{problem.loss.unit}": solution.loss,
        f"bound_{problem.loss.unit}": solution.bound,
        "gap": solution.gap,
        "seconds": solution.seconds,
        "budgets": [
            {
                "resource": budget.resource,
                "unit": budget.unit,
                "limit": budget.limit,
                "used": budget.used(solution.columns),
            }
            for budget in problem.budgets
        ],
        "precisions": {n: str(p) for n, p in solution.precisions(problem).items()},
    }
