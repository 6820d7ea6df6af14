"""Events of a search that tell what was planned, measured, solved and found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, final

from mpq._support.events import Event
from mpq.problem.solution import Solution
from mpq.quantization.precision import Precision


@final
@dataclass(frozen=True)
class Planned(Event):
    """What long work will take, told from its first batch; told again where more is known.

    Args:
        phases: Phase, or kind of work (``Progressed.work``), to seconds, of those to come.
        seconds: Of all of them.
        besides: What takes its time besides, of which nothing is known yet.
        at_most: Phase to seconds if it does not end early, often much more than it takes, and as
            uncertain as all others; not in ``seconds``.
        calls: How often the user's own score is asked, a sentence; empty: there is none.
    """

    phases: Mapping[str, float]
    seconds: float
    besides: tuple[str, ...] = ()
    at_most: Mapping[str, float] = field(default_factory=dict)
    calls: str = ""
    name: ClassVar[str] = "planned"

    def to_dict(self) -> dict[str, Any]:
        """See ``Event.to_dict``."""
        told = {
            "phases": dict(self.phases),
            "seconds": self.seconds,
            "besides": list(self.besides),
            "at_most": dict(self.at_most),
        }
        return told | ({"calls": self.calls} if self.calls else {})


@final
@dataclass(frozen=True)
class Measured(Event):
    """A quantized network was measured, as an answer or beside one; not as a trial of a rounding.

    Args:
        examples: ``"held out"`` or ``"calibration"``.
        precisions: Layer to precision.
        loss: In ``unit``, beside the original.
        unit: The metric's: nats of the KL divergence.
        accuracy: ``None`` without targets, or where it is not known.
        score: The user's own; ``None``: there is none, or it is not known.
    """

    examples: str
    precisions: Mapping[str, Precision]
    loss: float
    unit: str
    accuracy: float | None = None
    score: float | None = None
    name: ClassVar[str] = "measured"

    def to_dict(self) -> dict[str, Any]:
        """See ``Event.to_dict``."""
        return {
            "examples": self.examples,
            "precisions": {layer: str(chosen) for layer, chosen in self.precisions.items()},
            "loss": self.loss,
            "unit": self.unit,
            "accuracy": self.accuracy,
            "score": self.score,
        }


@final
@dataclass(frozen=True)
class Solved(Event):
    """A problem was solved.

    Args:
        solver: Its name, with its backend.
        status: How it ended: a member of ``Status``, in lower case.
        loss: What it made small: predicted, in the estimator's unit; of a solver that measures, in
            the metric's, or how much worse the task's own score is; ``nan`` without an answer.
        bound: Proved lower bound of it; ``None``: not proved.
        seconds: Wall time; ``nan`` where it is not known.
    """

    solver: str
    status: str
    loss: float
    bound: float | None
    seconds: float
    name: ClassVar[str] = "solved"

    @classmethod
    def of(cls, solution: Solution) -> Self:
        """The event of a solution."""
        status = solution.status.name.lower()
        return cls(solution.solver, status, solution.loss, solution.bound, solution.seconds)

    def to_dict(self) -> dict[str, Any]:
        """See ``Event.to_dict``."""
        return {
            "solver": self.solver,
            "status": self.status,
            "loss": self.loss,
            "bound": self.bound,
            "seconds": self.seconds,
        }


@final
@dataclass(frozen=True)
class Finished(Event):
    """The work is done, and this came out.

    Args:
        result: What the verb returns: a ``SearchResult``, ``Frontier``, ``EstimatorComparison``,
            ``RecipeComparison``, ``NetworkProfile`` or ``EvolvedProxy``.
        settings: What it was made with, for a table of runs; flat.
        metrics: What it comes to, for the same table; flat, each with its unit in its name where
            that is not clear.
    """

    result: Any
    settings: Mapping[str, str | int | float]
    metrics: Mapping[str, float]
    name: ClassVar[str] = "finished"

    def to_dict(self) -> dict[str, Any]:
        """See ``Event.to_dict``; the result itself is not in it."""
        return {
            "result": type(self.result).__name__,
            "settings": dict(self.settings),
            "metrics": dict(self.metrics),
        }
