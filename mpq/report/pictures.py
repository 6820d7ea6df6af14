"""Numbers as pictures. Figures are made without pyplot, so that no global state changes."""

import math
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, Literal, final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, EngFormatter, FuncFormatter

from mpq._support.names import for_picture
from mpq.errors import InputError
from mpq.network.layer import WEIGHTLESS
from mpq.problem.assignment import Assignment
from mpq.report.amount import amount
from mpq.report.labels import name_points

if TYPE_CHECKING:
    from mpq.report.frontier import Frontier, FrontierPoint

# What SI prefixes are put before. Bit operations have no symbol: the axis' label names them.
_SYMBOLS: Final = {"seconds": "s", "joules": "J", "bitops": "", "bits": "bit"}


@final
class _RoundBytes(AutoLocator):
    """Places of an axis in bytes that are round numbers of what they are written in, as KiB."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """In bytes, between two amounts."""
        most = max(abs(vmin), abs(vmax))
        size = next(1024**power for power in (2, 1, 0) if power == 0 or most >= 1024**power)
        return np.asarray(super().tick_values(vmin / size, vmax / size)) * size


def png(figure: Figure, run_id: str = "") -> bytes:
    """The picture as PNG, with the mark of the run that it belongs to, if there is one."""
    buffer = BytesIO()
    # `Source` is among the keywords that the PNG standard defines.
    metadata = {"Source": run_id} if run_id else None
    figure.savefig(buffer, format="png", dpi=150, metadata=metadata)
    return buffer.getvalue()


def new_axes(width: float, height: float) -> Axes:
    """Axes of a figure of their own, in inches."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def figure_of(axes: Axes) -> Figure:
    """The figure that axes are in."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def _given_or_new(axes: Axes | None, width: float, height: float) -> Axes:
    """Axes that somebody gave, or new ones of a size in inches."""
    if axes is None:
        return new_axes(width, height)
    if not isinstance(axes, Axes):
        raise InputError(
            f"axes is {type(axes).__name__}; expected one matplotlib Axes, as figure.add_subplot() "
            "makes, or none for new ones"
        )
    return axes


def draw_frontier(
    frontier: "Frontier",
    axes: Axes | None = None,
    upwards: Literal["loss", "score"] = "loss",
) -> Axes:
    """Loss against cost: the frontier, uniform precisions and the chosen point, measured beside.

    Args:
        frontier: What is drawn.
        axes: Of any figure, to be drawn into; default: new ones.
        upwards: ``score``: what the task's own score says of the points that were measured.

    Returns:
        The axes, to be restyled.

    Raises:
        InputError: If no point has a score that is asked for, or ``axes`` is something else, such
            as a figure.
    """
    axes = _given_or_new(axes, 7.5, 5)
    if upwards == "score":
        _draw_scores(axes, frontier)
    else:
        _draw_losses(axes, frontier)
    _write_amounts(axes, frontier.resource, frontier.unit)
    axes.margins(x=0.08)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    if upwards == "loss":
        # A uniform precision that the device cannot run costs nan and has no place on the axis.
        shown = (p for p in frontier.others if p.label != "result" and not math.isnan(p.cost))
        name_points(axes, [(p.label, p.cost, p.loss) for p in shown])
    return axes


def _write_amounts(axes: Axes, resource: str, unit: str) -> None:
    """The axis of what is paid, in the units that tables and the page have."""
    name, symbol = for_picture(resource.replace("_", " ")), _SYMBOLS.get(unit, unit)
    axes.set_xlabel(name if symbol else f"{name} [{unit}]")
    if unit == "bytes":
        axes.xaxis.set_major_locator(_RoundBytes())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value, unit)))
    else:
        axes.xaxis.set_major_formatter(EngFormatter(unit=symbol))


def _draw_losses(axes: Axes, frontier: "Frontier") -> None:
    # Two words for two measurements: the solver's own, and that on held-out examples.
    found, again = ("measured", "held out") if frontier.is_by_trials else ("predicted", "measured")
    axes.plot(*_line(frontier.points), "o-", color="C0", ms=4, label=f"frontier, {found}")
    measured = [(p.cost, p.measured.divergence) for p in frontier.points if p.measured]
    if measured:
        axes.plot(*zip(*measured, strict=True), "x--", color="C1", label=f"frontier, {again}")
    _draw_others(axes, frontier.others, found, again)
    axes.set_ylabel(_name_of_losses(frontier, found, again))
    _scale_losses(axes, [*_line(frontier.points)[1], *_line(frontier.others)[1]])


def _name_of_losses(frontier: "Frontier", found: str, again: str) -> str:
    """With both units, where what is measured on held-out examples has another one."""
    units = {p.measured.metric.unit: None for p in frontier.all_points() if p.measured}
    units.pop(frontier.loss_unit, None)
    if not units:
        return f"loss [{frontier.loss_unit}]"
    return f"loss [{found}: {frontier.loss_unit}, {again}: {' or '.join(units)}]"


def _draw_scores(axes: Axes, frontier: "Frontier") -> None:
    """Measured points alone: nobody predicts a score."""
    found = {"frontier": _scored(frontier.points)}
    found["uniform"] = _scored([p for p in frontier.others if p.label != "result"])
    found["chosen"] = _scored([p for p in frontier.others if p.label == "result"])
    if not any(found.values()):
        raise InputError(
            "no point of this frontier has a score: search with one (Task.score), and measure its "
            "points (Session.measured)"
        )
    looks = {"frontier": ("x--", "C1", 6), "uniform": ("s", "0.3", 5), "chosen": ("*", "C3", 14)}
    for label, pairs in found.items():
        if pairs:
            marker, color, size = looks[label]
            places = zip(*pairs, strict=True)
            axes.plot(*places, marker, color=color, ms=size, label=f"{label}, measured")
    axes.set_ylabel("score")


def _scored(points: Sequence["FrontierPoint"]) -> list[tuple[float, float]]:
    return [
        (p.cost, p.measured.score)
        for p in points
        if p.measured is not None and p.measured.score is not None and not math.isnan(p.cost)
    ]


def _scale_losses(axes: Axes, losses: Sequence[float]) -> None:
    """Decades; a loss of zero, as of the original, has a place below the smallest."""
    positive = [loss for loss in losses if loss > 0]
    if len(positive) == len(losses):
        axes.set_yscale("log")
    # Linear below the smallest loss, so that 0 is on the axis. Losses below 0, which only a
    # prediction can have, leave the whole axis linear.
    elif positive and min(losses) == 0:
        axes.set_yscale("symlog", linthresh=min(positive))


def _line(points: Sequence["FrontierPoint"]) -> tuple[list[float], list[float]]:
    return [p.cost for p in points], [p.loss for p in points]


def _draw_others(axes: Axes, others: Sequence["FrontierPoint"], found: str, again: str) -> None:
    # A uniform precision that the device cannot run costs nan and has no place on the axis.
    shown = [p for p in others if not math.isnan(p.cost)]
    uniform = [p for p in shown if p.label != "result"]
    chosen = [p for p in shown if p.label == "result"]
    for points, marker, size, color, label in (
        ([p for p in uniform if p.meets_others], "s", 5, "0.3", "uniform"),
        (
            [p for p in uniform if not p.meets_others],
            "s",
            5,
            "0.75",
            "uniform, beyond budgets or rules",
        ),
        (chosen, "*", 14, "C3", "chosen"),
    ):
        if not points:
            continue
        axes.plot(*_line(points), marker, color=color, ms=size, label=f"{label}, {found}")
        measured = [(p.cost, p.measured.divergence) for p in points if p.measured]
        if measured:
            places = zip(*measured, strict=True)
            axes.plot(*places, marker, color=color, ms=size, mfc="none", label=f"{label}, {again}")


def draw_bits(assignment: Assignment, axes: Axes | None = None) -> Axes:
    """Bits of every layer's weight (bars) and input activation (marks).

    Args:
        assignment: What is drawn.
        axes: Of any figure, to be drawn into; default: new ones.

    Returns:
        The axes, to be restyled.

    Raises:
        InputError: If ``axes`` is something else, such as a figure.
    """
    names = [for_picture(layer.name) for layer in assignment.layers]
    # Caches and operands have no weights, whatever their precision says of them.
    weights = [
        0.0 if layer.kind in WEIGHTLESS else layer.precision.weight.mean_bits
        for layer in assignment.layers
    ]
    inputs = [layer.precision.activation.mean_bits for layer in assignment.layers]
    # Width by the number of layers, so that rotated names do not overlap.
    axes = _given_or_new(axes, max(6.0, 0.28 * len(names) + 2), 4.5)
    axes.bar(range(len(names)), weights, color="C0", label="weight")
    axes.plot(range(len(names)), inputs, "_", color="C3", ms=9, mew=2, label="input activation")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_ylabel("bits")
    axes.set_ylim(0, max(*weights, *inputs) * 1.15)
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.12), frameon=False)
    return axes
