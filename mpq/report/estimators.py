"""How estimators compare: predictions beside what random assignments and optima really lose."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from html import escape
from math import ceil
from pathlib import Path
from typing import Any, Final, final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mpq._support import schema_versions
from mpq._support.json_object import known
from mpq._support.names import visible
from mpq.report.page.made import Made
from mpq.report.rank_agreement import RankAgreement
from mpq.report.trials import Score, Trial


@final
@dataclass(frozen=True)
class EstimatorComparison:
    """The answer of ``mpq.compare``.

    Args:
        trials: Random assignments near every limit.
        scores: How well each estimator predicts, in the order asked for.
        unit: Unit of the measured losses.
        max_loss: Trials that lose more count in no correlation: there every network is broken.
        forward_seconds: One forward pass over the calibration examples (CPU: processor time).
        num_calibration: Examples that estimators saw.
        num_held_out: Examples that losses were measured on.
        made: How it was called, and what it took.
    """

    trials: tuple[Trial, ...]
    scores: tuple[Score, ...]
    unit: str
    max_loss: float
    forward_seconds: float
    num_calibration: int
    num_held_out: int
    made: Made = field(default_factory=Made, compare=False, repr=False)

    @cached_property
    def limits(self) -> tuple[str, ...]:
        """The limits, in order."""
        # A dictionary keeps the order of the limits, which a set of strings changes in every
        # process.
        return tuple(dict.fromkeys(trial.limit for trial in self.trials))

    def agreement(self, score: Score, limit: str | None = None) -> RankAgreement:
        """Over trials below ``max_loss``, near one limit or near any."""
        # An estimator that failed has no predictions, and `zip` below is strict.
        if not score.predicted:
            return RankAgreement(float("nan"), float("nan"), float("nan"), 0)
        pairs = [
            (predicted, trial.divergence)
            for predicted, trial in zip(score.predicted, self.trials, strict=True)
            if trial.divergence <= self.max_loss and limit in (None, trial.limit)
        ]
        return RankAgreement.of([p for p, _ in pairs], [m for _, m in pairs])

    def __repr__(self) -> str:
        count = len(self.scores)
        return f"<EstimatorComparison: {count} estimators on {len(self.trials)} assignments>"

    def table(self) -> pd.DataFrame:
        """One row per estimator: correlations, ratio, what its optima lose, cost."""
        return scores_table(self)

    def predictions(self) -> pd.DataFrame:
        """One row per random assignment: what it lost, what every estimator predicted."""
        return predictions_table(self)

    def to_json(self) -> str:
        """Everything but how it was made, as ``estimators.schema.json`` describes it."""
        data = {
            "schema_version": schema_versions.ESTIMATORS,
            "unit": self.unit,
            "max_loss": self.max_loss,
            "forward_seconds": self.forward_seconds,
            "num_calibration": self.num_calibration,
            "num_held_out": self.num_held_out,
            "trials": [asdict(trial) for trial in self.trials],
            "scores": [asdict(score) for score in self.scores],
        }
        return json.dumps(known(data), indent=1) + "\n"

    def to_markdown(self) -> str:
        """The table for a README."""
        return comparison_markdown(self)

    def plot(self) -> Figure:
        """Predicted against measured, one panel per estimator."""
        return draw_predictions(self)

    def save(self, folder: Path | str) -> list[Path]:
        """Writes the files of ``mpq.report.saved_estimators``, report.html among them.

        Raises:
            OutputError: If the folder cannot be written to.
        """
        from mpq.report.saved_estimators import save_estimators

        return save_estimators(self, folder)


_COLUMNS = 3  # panels beside each other that stay readable on a page
_MAX_LOSS_LINE: Final[dict[str, Any]] = {"color": "0.6", "lw": 0.8, "ls": ":"}
_DIAGONAL: Final[dict[str, Any]] = {"color": "0.3", "lw": 0.8}


def scores_table(comparison: EstimatorComparison) -> pd.DataFrame:
    """One row per estimator, best rank correlation first; the last row is random search."""
    rows = [_row(comparison, score) for score in comparison.scores]
    # An estimator that failed has nan here, which pandas sorts last in either direction.
    frame = pd.DataFrame(rows).sort_values("spearman", ascending=False, ignore_index=True)
    return pd.concat([frame, pd.DataFrame([_best_random(comparison)])], ignore_index=True)


def _row(comparison: EstimatorComparison, score: Score) -> dict[str, object]:
    whole = comparison.agreement(score)
    solved = {one.limit: one for one in score.solved}
    return {
        "estimator": score.estimator,
        "spearman": whole.spearman,
        "kendall": whole.kendall,
        # A ratio of unlike units says nothing.
        "predicted_to_measured": whole.ratio if score.unit == comparison.unit else float("nan"),
        "assignments": whole.num_trials,
        **{
            f"spearman at {limit}": comparison.agreement(score, limit).spearman
            for limit in comparison.limits
        },
        **{
            f"solved_{comparison.unit} at {limit}": solved[limit].divergence
            if limit in solved
            else float("nan")
            for limit in comparison.limits
        },
        **_accuracies(comparison, {limit: one.accuracy for limit, one in solved.items()}),
        "forward_passes": score.forward_passes,
        "estimate_seconds": score.seconds,
        "peak_memory_bytes": score.peak_memory_bytes,
        "error": score.error,
    }


def _accuracies(
    comparison: EstimatorComparison, found: dict[str, float | None]
) -> dict[str, float | None]:
    # All are measured on the same examples, so that one of them tells whether there are targets.
    if comparison.trials[0].accuracy is None:
        return {}
    return {f"solved_accuracy at {limit}": found.get(limit) for limit in comparison.limits}


def _best_random(comparison: EstimatorComparison) -> dict[str, object]:
    best = {
        limit: min(
            (trial for trial in comparison.trials if trial.limit == limit),
            key=lambda trial: trial.divergence,
        )
        for limit in comparison.limits
    }
    # `mpq.compare` draws equally many near every limit.
    count = len(comparison.trials) // len(comparison.limits)
    return {
        "estimator": f"best of {count} random",
        **{
            f"solved_{comparison.unit} at {limit}": best[limit].divergence
            for limit in comparison.limits
        },
        **_accuracies(comparison, {limit: trial.accuracy for limit, trial in best.items()}),
    }


def comparison_markdown(comparison: EstimatorComparison) -> str:
    """The table without what is only of use to a program."""
    frame = scores_table(comparison)
    hidden = ("assignments", "estimate_seconds", "error")
    # By prefix: there is a column `spearman at ...` for every limit, too many for a page.
    shown = [
        name for name in map(str, frame.columns) if not name.startswith(("spearman at", *hidden))
    ]
    shown = [name for name in shown if not name.startswith("solved_accuracy")]
    lines = [_line(map(_heading, shown)), _line("---" for _ in shown)]
    for _, row in frame.iterrows():
        lines.append(_line(_cell(name, row[name]) for name in shown))
    for score in comparison.scores:
        if score.error:
            told = escape(visible(score.error), quote=False)
            lines.append(f"\n{_code(score.estimator)}: {told}")
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    # Also in code a bar would begin another cell.
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _code(name: str) -> str:
    """A name as code, whatever it holds.

    >>> _code("sketch"), _code("a`b")
    ('`sketch`', '`` a`b ``')
    """
    longest = max(map(len, re.findall("`+", name)), default=0)
    mark, blank = "`" * (longest + 1), " " if longest else ""
    return f"{mark}{blank}{visible(name)}{blank}{mark}"


def _heading(name: str) -> str:
    if name.endswith("_bytes"):
        name = f"{name.removesuffix('_bytes')} [MiB]"
    if name.startswith("solved_"):
        unit, _, limit = name.removeprefix("solved_").partition(" at ")
        return f"solved [{unit}] {escape(visible(limit), quote=False)}"
    return name.replace("predicted_to_measured", "predicted / measured").replace("_", " ")


def _cell(name: str, value: object) -> str:
    if name == "estimator":
        return _code(str(value)) if "random" not in str(value) else str(value)
    assert isinstance(value, int | float) or value is None
    # Only nan differs from itself.
    if value is None or value != value:
        return ""
    if name.endswith("_bytes"):
        # MiB, as `_heading` says; the CSV keeps bytes.
        return f"{value / 2**20:.0f}"
    return f"{value:.1f}" if name == "forward_passes" else f"{value:.3g}"


def predictions_table(comparison: EstimatorComparison) -> pd.DataFrame:
    """One row per random assignment: what it lost, and what every estimator predicted."""
    frame = pd.DataFrame(
        {
            "limit": [trial.limit for trial in comparison.trials],
            f"measured_{comparison.unit}": [trial.divergence for trial in comparison.trials],
            "measured_accuracy": [trial.accuracy for trial in comparison.trials],
        }
    )
    for score in comparison.scores:
        if score.predicted:
            frame[f"{score.estimator} [{score.unit}]"] = score.predicted
    return frame


def draw_predictions(comparison: EstimatorComparison) -> Figure:
    """Predicted against measured, one panel per estimator, a colour per limit."""
    drawn = [score for score in comparison.scores if score.predicted]
    # Matplotlib refuses a grid of no rows, and every estimator may have failed.
    rows = max(1, ceil(len(drawn) / _COLUMNS))
    figure = Figure(figsize=(4.2 * _COLUMNS, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    # Not strict: the last row of the grid need not be full.
    for panel, score in zip(panels, drawn, strict=False):
        _draw(panel, comparison, score)
    for panel in panels[len(drawn) :]:
        panel.set_axis_off()
    figure.legend(handles=_legend(comparison), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _colours(comparison: EstimatorComparison) -> dict[str, str]:
    """Of every limit, the same in all panels: one may have no point of a limit."""
    return {limit: f"C{number}" for number, limit in enumerate(comparison.limits)}


def _legend(comparison: EstimatorComparison) -> list[Line2D]:
    """What every panel may show, whichever it does."""
    dots = [
        Line2D([], [], color=colour, marker=".", ms=5, alpha=0.6, ls="", label=limit)
        for limit, colour in _colours(comparison).items()
    ]
    return [
        *dots,
        Line2D([], [], **_MAX_LOSS_LINE, label="not correlated beyond"),
        Line2D([], [], **_DIAGONAL, label="predicted = measured"),
    ]


def _draw(axes: Axes, comparison: EstimatorComparison, score: Score) -> None:
    for limit, colour in _colours(comparison).items():
        # Logarithmic axes have no place for 0, which a trial may lose, and less, as may be
        # predicted.
        pairs = [
            (trial.divergence, predicted)
            for trial, predicted in zip(comparison.trials, score.predicted, strict=True)
            if trial.limit == limit and trial.divergence > 0 and predicted > 0
        ]
        if pairs:
            axes.plot(*zip(*pairs, strict=True), ".", color=colour, ms=5, alpha=0.6, label=limit)
    axes.axvline(comparison.max_loss, **_MAX_LOSS_LINE)
    if score.unit == comparison.unit:
        # Read from linear axes, whose margin may reach below 0. What is not positive is clipped in
        # both coordinates alike, so that the line stays the diagonal.
        low, high = axes.get_xlim()
        axes.plot([low, high], [low, high], **_DIAGONAL)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(
        f"{score.estimator}\nSpearman {comparison.agreement(score).spearman:.3f}", size=9
    )
    axes.set_xlabel(f"measured [{comparison.unit}]")
    axes.set_ylabel(f"predicted [{score.unit}]")
    axes.grid(alpha=0.3)
