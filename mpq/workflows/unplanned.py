"""What a search does besides what a plan counts."""

from collections.abc import Iterator, Mapping
from math import isinf
from typing import Final

from mpq.workflows.method import Method
from mpq.workflows.task import Task

OF_SOLVER: Final = "measurements of the solver"
"""A phase, where it says how many there are."""
OF_MINIMIZED: Final = "what is minimized"
"""Known at most, once a measurement was clocked."""


def unplanned(task: Task, method: Method) -> Iterator[str]:
    """What a search does besides, of which a plan says nothing."""
    asked: Mapping[str, object] = {
        "transformations": task.transforms,
        "sequential rounding": task.sequential_rounding,
        "ranges chosen again": task.recalibrate,
        "biases": task.bias_correction,
        "tuning": task.tune,
        OF_SOLVER: method.solver.is_measuring and isinf(method.solver.measuring_s(0.0)),
        OF_MINIMIZED: method.objective is not None,
        "bits inside layers": task.parts is not None,
    }
    yield from (name for name, wanted in asked.items() if wanted)
