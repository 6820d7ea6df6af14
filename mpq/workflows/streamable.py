"""What can be asked of a network that is streamed; all else is refused before anything runs."""

from collections.abc import Iterator
from typing import Final

from mpq.backends.searched import Traces
from mpq.errors import InputError
from mpq.quantization.precision import Precision
from mpq.sensitivity import SensitivityEstimator
from mpq.sensitivity.auto import AutoEstimator
from mpq.sensitivity.fisher import DiagonalFisher
from mpq.sensitivity.layer_output import LayerOutput
from mpq.sensitivity.output_sketch import OutputSketch
from mpq.sensitivity.weight_error import WeightError
from mpq.workflows.method import Method
from mpq.workflows.task import Task

ESTIMATORS: Final[tuple[type[SensitivityEstimator], ...]] = (
    AutoEstimator,
    OutputSketch,
    DiagonalFisher,
    LayerOutput,
    WeightError,
)
"""Those that look at one layer after the other, and keep little of each."""


def check_streamed(task: Task, method: Method) -> None:
    """Refuses what is not done block by block, before anything runs.

    Raises:
        InputError: Names the part, and what to do.
    """
    for what, instead in _refusals(task, method):
        raise InputError(f"{task.streamed}. {what} is not done so: {instead}")


def refuse_streamed(task: Task, verb: str) -> None:
    """Refuses a verb that needs all of a network in memory.

    Raises:
        InputError: If the network would not fit.
    """
    if task.streamed:
        raise InputError(
            f"{task.streamed}. `{verb}` is not done so: only `search` and `frontier` are, and what "
            "they measure; allow more memory"
        )


def _refusals(task: Task, method: Method) -> Iterator[tuple[str, str]]:
    """What cannot be streamed of what is asked, and what to ask instead."""
    if not isinstance(method.estimator, ESTIMATORS):
        known = ", ".join(kind.name for kind in ESTIMATORS)
        yield f"sensitivity={method.estimator.name}", f"of the estimators {known} are"
    if method.solver.is_measuring:
        yield "is_measured=true", "leave it out, so that losses are predicted"
    if method.rounds:
        yield "refine", "leave it out (--refine 0)"
    if task.own_score is not None:
        why = "it calls the whole network, whose weights would be read from disk in every call"
        yield "score (--score)", f"{why}; leave it out, or allow more memory"
    branched = next((str(p) for p in _mentioned(task) if p.weight.branch is not None), "")
    asked = {
        "sequential_rounding (--sequential-rounding)": task.sequential_rounding,
        "transforms (--transform)": bool(task.transforms),
        "tune (--tune)": task.tune is not None,
        "recalibrate (--recalibrate)": task.recalibrate,
        "bias_correction (--bias-correction)": task.bias_correction,
        "allow_randomness (--allow-randomness)": task.allow_randomness is not None,
        f"a branch beside codes ({branched})": bool(branched),
        f"a graph for to={task.to} (--to)": isinstance(task.target, Traces),
    }
    for what, is_asked in asked.items():
        if is_asked:
            yield what, "leave it out, or allow more memory"


def _mentioned(task: Task) -> Iterator[Precision]:
    """Precisions that some layer may have."""
    yield from task.precisions
    yield from (precision for _, precision in task.rules.fixed)
    yield from (precision for _, allowed in task.rules.allowed for precision in allowed)
