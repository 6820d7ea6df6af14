"""Names beside points of a picture, none of which lies over another."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from mpq._support.names import for_picture

_AWAY: Final = 4
"""Points of a printer between a name and what it names."""
_LINE: Final = 10
"""Points from one line of names to the next."""
_MOST_LINES: Final = 12
"""That are tried above a point, and below it."""
_NEAR: Final = 8
"""Places that count as near; farther away a name may as well lie over other points."""
_MARK: Final = 4
"""Pixels from the middle of a mark to its edge."""


def name_points(axes: Axes, named: Sequence[tuple[str, float, float]]) -> None:
    """Writes a name beside each point, once all else is drawn: the legend has its place by then.

    A name for which there is no room within the axes is left out.

    Args:
        axes: With all of their marks, and a legend or none.
        named: Of each point its name and where it is on both axes.
    """
    if not named:
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    notes = [
        axes.annotate(
            for_picture(name), (x, y), xytext=(_AWAY, _AWAY), textcoords="offset points",
            fontsize=8, color="0.3",
        )
        for name, x, y in named
    ]  # fmt: skip
    # What is beyond the axes would make them smaller before it is moved.
    for note in notes:
        note.set_in_layout(False)
    figure.draw_without_rendering()
    legend = axes.get_legend()
    taken = [] if legend is None else [legend.get_window_extent()]
    marks = list(_marks(axes))
    for note in notes:
        _place(note, axes.bbox, taken, marks)


def _place(note: Annotation, within: Bbox, taken: list[Bbox], marks: Sequence[Bbox]) -> None:
    """Takes a near place that covers no mark, or else the first that is free."""
    free = list[tuple[tuple[float, float, str, str], Bbox]]()
    for place in _places():
        _move(note, *place)
        box = note.get_window_extent()
        is_inside = within.x0 <= box.x0 and box.x1 <= within.x1
        is_inside = is_inside and within.y0 <= box.y0 and box.y1 <= within.y1
        if is_inside and not box.count_overlaps(taken):
            free.append((place, box))
            if len(free) == _NEAR or not box.count_overlaps(marks):
                break
    if not free:
        note.set_visible(False)
        return
    last = free[-1]
    place, box = free[0] if last[1].count_overlaps(marks) else last
    _move(note, *place)
    taken.append(box)


def _move(note: Annotation, right: float, up: float, ha: str, va: str) -> None:
    note.set_position((right, up))
    note.set_horizontalalignment(ha)  # type: ignore[arg-type]
    note.set_verticalalignment(va)  # type: ignore[arg-type]


def _places() -> Iterator[tuple[float, float, str, str]]:
    """Steps from the point in points of a printer, and how the name is aligned there."""
    for line in range(_MOST_LINES):
        for up, va in ((_AWAY + _LINE * line, "bottom"), (-_AWAY - _LINE * line, "top")):
            for right, ha in ((_AWAY, "left"), (-_AWAY, "right"), (0, "center")):
                yield right, up, ha, va


def _marks(axes: Axes) -> Iterator[Bbox]:
    """Where every mark of a line is, in pixels."""
    for line in axes.lines:
        for x, y in axes.transData.transform(np.asarray(line.get_xydata())).tolist():
            yield Bbox.from_extents(x - _MARK, y - _MARK, x + _MARK, y + _MARK)
