"""An answer of a search, tuned on the calibration examples afterwards."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mpq._support.events import Callback, listening
from mpq._support.phases import phase, recorded_phases
from mpq.backends import quantize
from mpq.errors import InputError
from mpq.network.examples import Calibration
from mpq.network.metrics import METRICS
from mpq.network.network import Network
from mpq.tuning import TUNINGS, Tuning
from mpq.workflows.defaults import TUNING
from mpq.workflows.made_here import made_here
from mpq.workflows.outcome import announced
from mpq.workflows.result import SearchResult
from mpq.workflows.score import Judge
from mpq.workflows.setup import split_held_out
from mpq.workflows.task import Task, check_task
from mpq.workflows.tuning import Examples, Tuner


def tune(
    task: Task,
    result: SearchResult,
    what: str | Tuning = TUNING,
    *,
    folder: Path | str | None = None,
    callbacks: Sequence[Callback] = (),
) -> SearchResult:
    """Trains what is left to move in a quantized network to answer as the original does.

    Formats stay, and so do ranges of activations: scales, biases and norms move, or codes as well.
    The best epoch is chosen, and what comes out is kept or not, by examples that neither rounding
    nor prices have used: those that the search held back for it (``Task.tune``); else the first
    half of the held-out examples, and a tuned answer is measured on the other half alone. Where
    it does not help (Student's t of paired examples, one-sided, 5 %), the result stays, and its
    ``provenance.tuning`` says so.

    Args:
        task: Model, calibration and held-out examples as the search had them, the seed, and a score
            of the user's own, which has to be no worse. How outputs are compared and the network's
            own seed are the search's; all else is not used.
        result: What the search found, or ``mpq.load`` read.
        what: A name of ``mpq.TUNINGS`` with options, such as ``all:epochs=12``.
        folder: Where the state after each epoch is kept until the end, so that a run that was
            killed goes on there, with the same outcome; default: nowhere.
        callbacks: Who is told what happens meanwhile (``mpq.callbacks``): none changes the answer.

    Returns:
        The result with another assignment and measurement, or with the record alone.

    Raises:
        InputError: If something given cannot be used; its subclasses say what.
        MismatchError: If the result belongs to another network.
    """
    check_task(task, "tune")
    if not isinstance(result, SearchResult):
        raise InputError(
            "tune takes a task and the result of a search: mpq.tune(task, mpq.load('runs/x')); got "
            f"a {type(result).__name__}"
        )
    built = TUNINGS.build(what) if isinstance(what, str) else what
    with listening(callbacks), recorded_phases() as phases:
        with phase("tuning"):
            # First of all, since a result of another network is refused without a pass over data.
            quantize(task.model, result.assignment)
            examples, score = _examples(task, result), task.own_score
            tuner = Tuner(
                task.model, examples, built, task.seed,
                None if folder is None else Path(folder),
                None if score is None else Judge(score, examples.measured, task.model),
            )  # fmt: skip
            tuned = tuner.result(result)
        # What the search took is in its own folder.
        return announced(replace(tuned, made=made_here(phases)))


def _examples(task: Task, result: SearchResult) -> Examples:
    """As the search split them."""
    known, data = result.assignment.metadata, Calibration.of(task.calibration)
    names = set(result.assignment.precisions)
    network = Network.of(
        task.model, data, [lambda name, _: name in names],
        metric=METRICS.build(known.metric or "kl"), allow_randomness=known.allow_randomness,
    )  # fmt: skip
    seen, held_out = split_held_out(network, data, task.held_out)
    before = result.provenance.tuning
    if before is not None and before.share:
        seen, unseen = seen.split(before.share)
        return Examples.of(seen, unseen, held_out, before.share)
    return Examples.of(seen, *held_out.split(0.5), 0.0)
