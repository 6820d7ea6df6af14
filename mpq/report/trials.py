"""Random assignments, what estimators predict of them, and a comparison as its files need it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, final

from mpq.report.page.made import Made
from mpq.report.rank_agreement import RankAgreement

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@final
@dataclass(frozen=True)
class Trial:
    """A random assignment.

    Args:
        limit: The limit that it is near.
        columns: ``[L]`` a layer's precision each, as its column of the tables.
        divergence: Measured on held-out examples, in the metric's unit; or how much worse than the
            original's the task's own score is.
        accuracy: Measured there; ``None`` without targets.
    """

    limit: str
    columns: tuple[int, ...]
    divergence: float
    accuracy: float | None


@final
@dataclass(frozen=True)
class Solved:
    """What an estimator's own optimum within a limit really loses, as ``Trial`` has it.

    Args:
        standard_error: Of ``divergence``; ``None``: not known, as of a score.
    """

    limit: str
    predicted: float
    divergence: float
    accuracy: float | None
    standard_error: float | None = None


@final
@dataclass(frozen=True)
class Score:
    """How well one estimator predicts.

    Args:
        estimator: Name and options, as the user spelled them.
        predicted: Predicted loss of every trial, in the estimator's own unit.
        unit: The unit of ``predicted``.
        solved: Its optimum at every limit.
        seconds: Wall time that the estimate took.
        forward_passes: The same in forward passes over the calibration examples; on a CPU in
            processor time, which other programs disturb less.
        peak_memory_bytes: At the estimate's peak beyond what was held before; ``None``: unknown.
        error: Why there is no estimate; then the rest is empty.
    """

    estimator: str
    predicted: tuple[float, ...] = ()
    unit: str = ""
    solved: tuple[Solved, ...] = ()
    seconds: float = float("nan")
    forward_passes: float = float("nan")
    peak_memory_bytes: int | None = None
    error: str | None = None


class ComparedEstimators(Protocol):
    """What of a comparison of estimators is written; see ``EstimatorComparison``."""

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Random assignments near every limit."""

    @property
    def scores(self) -> tuple[Score, ...]:
        """How well each estimator predicts."""

    @property
    def unit(self) -> str:
        """Of the measured losses."""

    @property
    def max_loss(self) -> float:
        """Trials that lose more count in no correlation."""

    @property
    def forward_seconds(self) -> float:
        """One forward pass over the calibration examples."""

    @property
    def num_calibration(self) -> int:
        """Examples that estimators saw."""

    @property
    def num_held_out(self) -> int:
        """Examples that losses were measured on."""

    @property
    def made(self) -> Made:
        """How it was called, and what it took."""

    @property
    def limits(self) -> tuple[str, ...]:
        """In order."""

    def agreement(self, score: Score, limit: str | None = None) -> RankAgreement:
        """Near one limit, or near any."""

    def table(self) -> "pd.DataFrame":
        """One row per estimator."""

    def predictions(self) -> "pd.DataFrame":
        """One row per random assignment."""

    def to_json(self) -> str:
        """All numbers."""

    def to_markdown(self) -> str:
        """The table, for people."""

    def plot(self) -> "Figure":
        """Predicted against measured."""
