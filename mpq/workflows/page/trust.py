"""What of a result was predicted and measured as well."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from mpq._support.arrays import Array
from mpq.report.frontier import Frontier
from mpq.report.page.facts import Checked
from mpq.sensitivity.checked import CheckedCell
from mpq.workflows.searched import Searched

_FEWEST: Final = 5
"""Networks that a rank correlation is given of: of fewer it is next to chance."""


def checks_of(result: Searched, frontier: Frontier) -> tuple[Checked, ...]:
    """Networks, points of the frontier, then single cells."""
    return (*_networks(result), *_points(result, frontier), *_cells(result))


def _networks(result: Searched) -> Iterator[Checked]:
    for row in result.comparisons:
        if row.label != "original" and row.predicted_loss is not None:
            measured = row.measured
            label = "answer" if row.label == "result" else row.label
            yield Checked(
                label, "network", row.predicted_loss, measured.divergence, measured.standard_error
            )


def _points(result: Searched, frontier: Frontier) -> Iterator[Checked]:
    problem = result.problem
    for number, point in enumerate(frontier.points, start=1):
        if point.measured is not None:
            found, predicted = point.measured, point.loss
            if frontier.is_by_trials:
                # Its loss is measured as well, on other examples.
                predicted = problem.loss_of(problem.columns_of(point.precisions))
            yield Checked(
                f"frontier point {number}", "network", predicted, found.divergence,
                found.standard_error,
            )  # fmt: skip


def _cells(result: Searched) -> Iterator[Checked]:
    for cell in () if result.spot_check is None else result.spot_check.cells:
        what = f"{cell.layer} at {cell.precision}"
        yield Checked(what, "cell", cell.predicted, cell.measured, note=_note(cell))


def _note(cell: CheckedCell) -> str:
    if cell.is_off:
        return "predicted far too low"
    return "predicted far too high" if cell.is_dear else ""


def size_of(checks: tuple[Checked, ...]) -> str:
    """Whether whole networks lose what is predicted, in a sentence; empty: too few to say."""
    pairs = [(x.measured, x.predicted) for x in checks if x.kind == "network" and x.predicted > 0]
    if len(pairs) < 2:
        return ""
    ratios = sorted(measured / predicted for measured, predicted in pairs)
    low, high = (f"{each:.2g}" for each in (ratios[0], ratios[-1]))
    above = sum(ratio > 1 for ratio in ratios)
    return (
        f"whole networks lose {low} to {high} times what is predicted of them; "
        f"{above} of {len(ratios)} lose more than predicted"
    )


def order_of(checks: tuple[Checked, ...]) -> float | None:
    """Spearman's rank correlation over the networks; ``None`` where there are too few."""
    networks = [check for check in checks if check.kind == "network"]
    if len(networks) < _FEWEST:
        return None
    predicted = _ranks([check.predicted for check in networks])
    measured = _ranks([check.measured for check in networks])
    if predicted.std() == 0 or measured.std() == 0:
        return None
    return float(np.corrcoef(predicted, measured)[0, 1])


def _ranks(values: Sequence[float]) -> Array:
    """Places by size; equal ones share the mean of theirs."""
    # Not scipy's, whose import takes longer than the whole page.
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place], dtype=np.float64)
