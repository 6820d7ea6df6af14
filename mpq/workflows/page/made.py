"""How a result was made, as rows of its page: network, data, methods, versions."""

from collections.abc import Iterator
from math import isnan

from mpq.quantization.precision import spell_weight
from mpq.report.page.facts import BATCH_SIZE
from mpq.rounding import AutoRounding, CoordinateDescent, Nearest
from mpq.sensitivity import AutoEstimator, Measured, OutputSketch
from mpq.workflows.searched import Searched

Row = tuple[str, str]
"""A name and a value; empty: it is not known."""


def made_rows(result: Searched) -> Iterator[Row]:
    """A name and a value each."""
    yield from _network(result)
    yield from _examples(result)
    yield from _methods(result)
    made = result.provenance
    yield "seed", str(made.seed)
    yield "mpq", made.mpq_version
    yield "torch", made.torch_version
    yield "python", result.made.versions.get("python", "")


def _network(result: Searched) -> Iterator[Row]:
    subject = result.provenance.subject
    names = [] if subject is None else [f"class {subject.network}"]
    yield "network", "; ".join([*result.made.named("network", "weights"), *names])
    weighted = [layer for layer in result.layers if layer.has_weights]
    # A weight that several layers read is there once.
    count = sum(layer.num_weights for layer in weighted if layer.weight_of is None)
    others = len(result.layers) - len(weighted)
    more = f", and {others} caches or operands" if others else ""
    told = f"{len(weighted):,} with {count:,} weights{more}"
    yield "quantizable layers", told if result.layers else ""
    whole = result.coverage
    yield "parameters and buffers", "" if whole is None else f"{whole.num_elements:,}"


def _examples(result: Searched) -> Iterator[Row]:
    subject = result.provenance.subject
    known, count = result.assignment.metadata, result.assignment.metadata.num_held_out
    made = result.made
    yield "calibration examples", "; ".join([*_calibrated(result), *made.named("calibration")])
    where = made.named("held_out")
    if subject is not None and subject.is_split:
        where = ["a share of the data for calibration, which nothing is calibrated on"]
    yield "held-out examples", "" if count is None else "; ".join([f"{count:,}", *where])
    yield "first calibration batch", "" if subject is None else subject.batch
    yield "metric", known.metric or ""
    yield BATCH_SIZE, str(known.batch_size)


def _calibrated(result: Searched) -> list[str]:
    """How many examples; none where it is not known."""
    subject, seen = result.provenance.subject, result.provenance.reach.num_examples
    if subject is not None:
        return [f"{subject.num_calibration:,}"]
    # An older record counts all that it was given.
    return [f"{seen:,}, with the held-out ones where these are a share of them"] if seen else []


def _methods(result: Searched) -> Iterator[Row]:
    made, solution = result.provenance, result.solution
    yield "estimator", _estimator(result)
    yield "solver", f"{made.solver} ({solution.solver})"
    yield "time of the solver", "" if isnan(solution.seconds) else f"{solution.seconds:.3g} s"
    yield from () if made.asked is None else made.asked.sentences
    yield "rounding of weights", _rounding(result)
    yield "ranges of weights", result.assignment.weight_range
    yield "ranges of inputs", _ranges(result)
    yield "transformations", ", ".join(made.transforms) or "none"
    yield "target", made.target or "none: anywhere"


def _estimator(result: Searched) -> str:
    """With what ``auto`` came to, which its spot check knows; or with the table that it made."""
    made, table, check = result.provenance, result.problem.loss.name, result.spot_check
    name = made.estimator.partition(":")[0]
    if name != table:
        return f"{made.estimator} ({table})"
    if name != AutoEstimator.name or check is None:
        return made.estimator
    if check.fallback:
        return f"{made.estimator} ({Measured.name}: {check.fallback})"
    own = f", {len(check.repaired)} of {len(result.layers)} layers measured"
    raised = f", {len(check.raised)} raised" if check.raised else ""
    return f"{made.estimator} ({OutputSketch.name}{own if check.repaired else ''}{raised})"


def _rounding(result: Searched) -> str:
    """With what ``auto`` came to."""
    made = result.provenance
    if made.rounding.partition(":")[0] != AutoRounding.name:
        return made.rounding
    coded = [p.weight for p in result.problem.loss.precisions if p.weight.number.has_codes]
    left = {*map(spell_weight, coded)} - {*made.rounding_unhelped}
    # Not one weight has codes of its own: to nearest each, for whatever reason.
    if not left or result.assignment.weights is None:
        return f"{made.rounding} ({Nearest.name})"
    rest = ", ".join(made.rounding_unhelped)
    unhelped = f"; {Nearest.name} at {rest}" if rest else ""
    return f"{made.rounding} ({CoordinateDescent.name}{unhelped})"


def _ranges(result: Searched) -> str:
    """With what it came to where examples did not bear it out, or the answer has its own."""
    made, again = result.provenance, result.provenance.recalibration
    told = [made.activation_range]
    if made.activation_range and made.ranges_unhelped:
        told.append(f"mse at {', '.join(made.ranges_unhelped)}")
    if made.activation_range and again is not None and again.is_kept:
        told.append("chosen again for the answer")
    return "; ".join(told)
