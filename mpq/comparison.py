"""How estimators compare: predictions beside what random assignments and optima really lose."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self, final

import numpy as np
import numpy.typing as npt

from mpq.output import write_files
from mpq.report import comparison_markdown, draw_predictions, png, predictions_table, scores_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@final
@dataclass(frozen=True)
class Trial:
    """A random assignment.

    Args:
        limit: The limit that it is near.
        columns: ``[L]`` of its precisions.
        divergence: Measured on held-out examples, in the metric's unit.
        accuracy: Measured there; ``None`` without targets.
    """

    limit: str
    columns: tuple[int, ...]
    divergence: float
    accuracy: float | None


@final
@dataclass(frozen=True)
class Solved:
    """What an estimator's own optimum within a limit really loses, as ``Trial`` has it."""

    limit: str
    predicted: float
    divergence: float
    accuracy: float | None


@final
@dataclass(frozen=True)
class Score:
    """How well one estimator predicts.

    Args:
        estimator: As it was spelled.
        predicted: Of every trial, in the estimator's own unit.
        unit: That unit.
        solved: Its optimum at every limit.
        seconds: That the estimate took.
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


@final
@dataclass(frozen=True)
class Agreement:
    """Predicted against measured losses.

    Args:
        spearman: Rank correlation.
        kendall: Rank correlation, tau-b.
        ratio: Median of predicted over measured.
        num_trials: How many assignments were compared.
    """

    spearman: float
    kendall: float
    ratio: float
    num_trials: int

    @classmethod
    def of(cls, predicted: npt.ArrayLike, measured: npt.ArrayLike) -> Self:
        """Of two columns of equal length; correlations of fewer than three rows are ``nan``."""
        from scipy import stats

        x, y = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
        if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
            return cls(float("nan"), float("nan"), float("nan"), len(x))
        ratio = float(np.median(x[y > 0] / y[y > 0])) if (y > 0).any() else float("nan")
        spearman, kendall = stats.spearmanr(x, y), stats.kendalltau(x, y)
        return cls(float(spearman.statistic), float(kendall.statistic), ratio, len(x))


@final
@dataclass(frozen=True)
class EstimatorComparison:
    """The answer of ``mpq.compare``.

    Args:
        trials: Random assignments near every limit.
        scores: One per estimator.
        unit: Of measured losses.
        max_loss: Trials that lose more count in no correlation: there every network is broken.
        forward_seconds: One forward pass over the calibration examples (CPU: processor time).
        num_calibration: Examples that estimators saw.
        num_held_out: Examples that losses were measured on.
    """

    trials: tuple[Trial, ...]
    scores: tuple[Score, ...]
    unit: str
    max_loss: float
    forward_seconds: float
    num_calibration: int
    num_held_out: int

    @cached_property
    def limits(self) -> tuple[str, ...]:
        """The limits, in order."""
        return tuple(dict.fromkeys(trial.limit for trial in self.trials))

    def agreement(self, score: Score, limit: str | None = None) -> Agreement:
        """Over trials below ``max_loss``, near one limit or near any."""
        if not score.predicted:
            return Agreement(float("nan"), float("nan"), float("nan"), 0)
        pairs = [
            (predicted, trial.divergence)
            for predicted, trial in zip(score.predicted, self.trials, strict=True)
            if trial.divergence <= self.max_loss and limit in (None, trial.limit)
        ]
        return Agreement.of([p for p, _ in pairs], [m for _, m in pairs])

    def table(self) -> "pd.DataFrame":
        """One row per estimator: correlations, ratio, what its optima lose, cost."""
        return scores_table(self)

    def to_markdown(self) -> str:
        """The table for a README."""
        return comparison_markdown(self)

    def plot(self) -> "Figure":
        """Predicted against measured, one panel per estimator."""
        return draw_predictions(self)

    def save(self, folder: Path | str) -> list[Path]:
        """Writes estimators.csv, estimators.md, predictions.csv and predictions.png.

        Raises:
            OutputError: If the folder cannot be written to.
        """
        files = {
            "estimators.csv": self.table().to_csv(index=False),
            "estimators.md": self.to_markdown(),
            "predictions.csv": predictions_table(self).to_csv(index=False),
        }
        pictures = {"predictions.png": png(self.plot())}
        return write_files(Path(folder), {n: t.encode() for n, t in files.items()} | pictures)
