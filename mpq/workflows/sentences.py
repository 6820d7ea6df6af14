"""What a result says of itself, in sentences: for the terminal and for the page."""

from collections.abc import Collection, Iterator
from math import sqrt
from typing import Final

import numpy as np

from mpq.network.reparametrization import TRANSFORMS_FILE
from mpq.network.tuned_parameters import TUNED_FILE
from mpq.problem.solution import Solution
from mpq.quantization.precision import spell_weight
from mpq.quantization.steps import StepClusters
from mpq.quantization.stored import WEIGHTS_FILE
from mpq.report.amount import amount
from mpq.report.reasons import with_reasons
from mpq.report.step_lines import step_lines
from mpq.workflows.searched import Searched

_MANY_TIMES: Final = 2
"""From how much more on than predicted it is said: drops of single layers are noisy, and so are
losses of few examples."""


def answer_sentences(result: Searched) -> Iterator[str]:
    """How the search ended, and whether its prediction holds."""
    solution, recipe = result.solution, result.provenance.recipe
    if recipe is not None:
        yield recipe.sentence
    yield f"{solution.solver}: {solution.status.value}"
    if solution.why:
        yield solution.why
    yield f"{result.loss_name}: {solution.loss:.4g} {result.loss_unit}{_proof(solution)}"
    yield from _summed_scores(result)
    yield from _beyond_max_loss(result)
    if result.spot_check is not None:
        yield from result.spot_check.sentences
    if result.safeguard is not None:
        yield from result.safeguard.sentences
    for number, round_ in enumerate(result.provenance.refinements, start=1):
        yield (
            f"refinement {number}: measured loss {round_.measured_loss:.4g} on calibration "
            f"examples, {'kept' if round_.is_kept else 'not better, dropped'}"
        )


def _summed_scores(result: Searched) -> Iterator[str]:
    """Where single layers were judged, and all of them together cost the score much more."""
    higher = result.provenance.higher_score_is_better
    if result.problem.loss.unit != "score" or higher is None:
        return
    rows = {row.label: row.measured.score for row in result.comparisons}
    original, found = rows["original"], rows["result"]
    if original is None or found is None:  # of a network that no function can be asked of
        return
    drop = original - found if higher else found - original
    if drop > _MANY_TIMES * max(result.solution.loss, 0.0):
        yield (
            f"the score is {drop:.4g} worse, where what it loses by single layers adds up to "
            f"{result.solution.loss:.4g}: a score that does not tell them apart prices nothing; "
            "let a solver ask it of whole networks (--solver surrogate:is_measured=true)"
        )


def _beyond_max_loss(result: Searched) -> Iterator[str]:
    """Where a limit that the prediction meets is far exceeded on held-out examples.

    Codes that fit few examples lose next to nothing on these, and much more on others.
    """
    asked = result.provenance.asked
    limit = None if asked is None or asked.objective is None else asked.objective.max_loss
    if limit is None or result.provenance.is_loss_measured:
        return
    measured = result.measured
    # A score, or another metric than what prices are in, is no such loss.
    is_alike = result.loss_unit == measured.metric.unit
    if is_alike and measured.divergence > _MANY_TIMES * limit:
        yield (
            f"held-out examples lose {measured.divergence:.4g} {result.loss_unit}, where the "
            f"predicted loss was to be at most {limit:g}: the prediction fails here; limit what is "
            "measured (--max-measured-loss)"
        )


def cost_sentences(result: Searched) -> Iterator[str]:
    """What the answer uses of every budget, and what lies besides layers."""
    columns = result.columns
    for budget in result.problem.budgets:
        used, unit = budget.used(columns), budget.unit
        # Nothing is a share of 0, which a limit may be: on bytes between layers, for example.
        share = f" ({used / budget.limit:.1%})" if budget.limit else ""
        yield f"{budget.resource}: {amount(used, unit)} of {amount(budget.limit, unit)}{share}"
    for table in result.shown_tables:
        beside = {
            "besides its layers": table.constant,
            "between layers": table.total_between(columns) if table.pairs else 0.0,
        }
        parts = [f"{where}: {amount(x, table.unit)}" for where, x in beside.items() if x]
        if parts:
            yield f"{table.name} {'; '.join(parts)}"
    for table in result.half_widths:
        # Independent errors add up in squares; nan is an interval that is not known.
        widths = table.values[np.arange(len(columns)), columns]
        known = amount(sqrt(np.nansum(widths**2)), table.unit)
        yield f"{table.name} of its layers is known to {known} (95 %, if layers err independently)"
    device = result.provenance.device
    if device is not None:
        yield f"device {device.name}: {' and '.join(device.resources)} {device.basis}"


def unshipped_sentences(result: Searched) -> Iterator[str]:
    """Layers that the target has no place for; said first, as they may be most of the network."""
    unshipped = result.provenance.unshipped
    if unshipped:
        yield (
            f"{len(unshipped)} of {len(result.assignment.layers)} layers stay as they came, as "
            f"{result.provenance.target} holds none of their candidates: {with_reasons(unshipped)}"
        )


def operand_sentences(result: Searched) -> Iterator[str]:
    """How many operands between layers were searched, and what is left of them."""
    left = result.provenance.operands_left
    if left is not None:
        count = sum(layer.is_operand for layer in result.layers)
        rest = f"; {len(left)} stay as they came: {with_reasons(left)}" if left else ""
        yield f"{count} operands between layers take formats of their own{rest}"


def _rounding(result: Searched) -> Iterator[str]:
    """How weights became codes and ranges were chosen, where that looked at the loss."""
    made, weights = result.provenance, result.assignment.weights
    num_weights = sum(layer.has_weights for layer in result.layers)
    if weights is not None and made.tuning is not None and made.tuning.is_kept:
        yield (
            f"{len(weights.by_layer)} of {num_weights} weights have codes and "
            f"scales of their own (--rounding {made.rounding}, and tuned); they are in "
            f"{WEIGHTS_FILE}"
        )
    elif weights is not None and (count := _num_by_data(result, weights.by_layer)):
        yield (
            f"{count} of {num_weights} weights rounded with "
            f"regard to the calibration examples (--rounding {made.rounding}); their codes are "
            f"in {WEIGHTS_FILE}"
        )
    branched = sum(layer.precision.weight.branch is not None for layer in result.assignment.layers)
    if branched:
        yield f"{branched} weights have branches beside their codes; both are in {WEIGHTS_FILE}"
    if made.rounding_unguided:
        yield f"rounded without regard to the loss: {with_reasons(made.rounding_unguided)}"
    if made.rounded_to_nearest:
        yield f"weights rounded to nearest: {with_reasons(made.rounded_to_nearest)}"
    if made.rounding_unhelped:
        yield (
            f"weights at {', '.join(made.rounding_unhelped)} rounded to nearest: on calibration "
            f"examples that {made.rounding} had not seen, its codes lost more, or less by chance"
        )
    if made.ranges_unhelped:
        yield f"ranges by mse instead of loss: {with_reasons(made.ranges_unhelped)}"
    if made.steps is not None:
        yield from made.steps.sentences
        yield from _steps(result, made.steps.clusters)
    if made.sequential_rounding is not None:
        yield from made.sequential_rounding.sentences(result.measured.metric.unit)
    if made.recalibration is not None:
        yield made.recalibration.sentence(result.measured.metric.unit)
    if made.bias_correction is not None:
        yield from made.bias_correction.sentences(result.measured.metric.unit)
    if result.assignment.tuned is not None:
        count = len(result.assignment.tuned.by_name)
        yield f"{count} biases and norms tuned or corrected; see {TUNED_FILE}"
    if made.tuning is not None:
        yield from made.tuning.sentences(result.measured.metric.unit)


def _steps(result: Searched, clusters: StepClusters) -> Iterator[str]:
    """Which layers lose at which steps."""
    losses = result.step_losses
    if losses is not None and result.steps is not None:
        names = result.problem.loss.layers
        yield from step_lines(clusters, names, losses, result.steps.examples, result.columns)


def _num_by_data(result: Searched, kept: Collection[str]) -> int:
    """Of the weights that are kept, those that are not kept for their branches alone."""
    made, formats = result.provenance, result.assignment.precisions

    def is_to_nearest(name: str) -> bool:
        is_unhelped = spell_weight(formats[name].weight) in made.rounding_unhelped
        return made.rounding == "nearest" or name in made.rounded_to_nearest or is_unhelped

    return sum(formats[name].weight.branch is None or not is_to_nearest(name) for name in kept)


def _transforms(result: Searched) -> Iterator[str]:
    """What was done to the parameters, where it was asked for."""
    made, done = result.provenance, result.assignment.reparametrization
    if done is not None:
        yield (
            f"network transformed before rounding ({', '.join(done.transforms)}); what was done is "
            f"in {TRANSFORMS_FILE}"
        )
    if made.transforms_unhelped:
        yield f"transformations not used: {with_reasons(made.transforms_unhelped)}"
    if made.untransformed:
        yield f"weights that no transformation fits: {with_reasons(made.untransformed)}"


def network_sentences(result: Searched) -> Iterator[str]:
    """What of the network was not compared, not covered, not reached."""
    yield from _transforms(result)
    yield from _rounding(result)
    unscored = result.provenance.unscored
    if unscored:
        yield (
            "outputs that nobody looked at, so that layers behind them alone lose nothing: "
            f"{', '.join(unscored)}; --outputs compares them too"
        )
    if result.provenance.is_mixing:
        yield (
            "rows of a batch change each other's outputs (or are not as many), so that a whole "
            "batch is one example: macs, activations, latency and energy are those of a batch"
        )
    if result.provenance.unchecked_rows:
        yield (
            "not checked: whether rows of a batch change each other's outputs "
            f"({result.provenance.unchecked_rows}); each row is taken for an example"
        )
    if result.coverage is not None:
        yield from result.coverage.sentences
    yield from result.provenance.reach.sentences()


def _proof(solution: Solution) -> str:
    if solution.bound is None or solution.gap is None:
        return ", no bound proved"
    return f", proved bound {solution.bound:.4g} (gap {solution.gap:.2g})"
