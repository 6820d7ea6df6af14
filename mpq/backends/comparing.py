"""A runtime's weights, outputs and bytes beside the simulation's: what differs is refused."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from mpq.backends.export_check import ExportCheck
from mpq.backends.fresh import FreshRun
from mpq.backends.half_precision import DTYPE_NAMES, in_float32, parameter_dtype
from mpq.backends.last_digits import LastDigits, largest
from mpq.backends.layerwise import Stepwise, any_apart, first_apart, one_apart, traced
from mpq.backends.simulate import prepared, with_precisions
from mpq.backends.stored import check_budget, check_kinds, check_size, told_missing
from mpq.backends.target import SQUARED_ERROR, Shipped, Target
from mpq.errors import ModelError
from mpq.network.examples import Batch
from mpq.network.metric import OutputMetric
from mpq.network.named_outputs import compared_tensors, output_names, scored_tensors
from mpq.network.weight_layout import layout_of
from mpq.problem.assignment import Assignment

WEIGHT_TOLERANCE: Final = 1e-6
"""Float32's last digits, of a product of a scale and a code."""

Trace = Callable[[], Mapping[str, Tensor]]
"""Asks for what every layer of the runtime reads and gives, for ``Target.num_traced`` examples."""


def compared(
    target: Target,
    spelled: str,
    shipped: Shipped,
    batches: Sequence[Batch],
    ran: FreshRun,
    made: Path,
    was_searched_for: bool,
    trace: Trace,
) -> ExportCheck:
    """Refuses what differs from the simulation; else what is written down.

    Args:
        target: What wrote the files.
        spelled: The target as ``BACKENDS.build`` takes it.
        shipped: What was written.
        batches: Examples that were run, in float32.
        ran: What the runtime made of them.
        made: The folder.
        was_searched_for: Whether the assignment had the target's numerics.
        trace: Asked where outputs differ.

    Raises:
        ModelError: If weights, outputs or sizes are not those of the simulation.
    """
    # In float32, in which all that is stored is exact, and so is what the runtime was asked for.
    model = in_float32(shipped.model)
    module = prepared(model, shipped.assignment)
    # With the same quantizer: it has found all ranges, which takes most of the time.
    shipped_32 = replace(shipped, model=model, module=module)
    weights = _check_weights(target, shipped_32, ran)
    check_kinds(target, shipped, ran.kinds)
    simulated = with_precisions(module, shipped.assignment, shipped.quantizer)
    reference = target.reference(simulated, shipped)
    # What tells one output alone tells the one that networks are scored by as a rule.
    metric = shipped.metric if ran.more else SQUARED_ERROR
    originals = [_answer(target, model, batch, metric)[0] for batch in batches]
    answered = [_answer(target, reference, batch, metric) for batch in batches]
    expected = [first for first, _ in answered]
    searched = expected
    if reference is not simulated:
        searched = [_answer(target, simulated, batch, metric)[0] for batch in batches]
    differences = _differences(target, batches, expected, ran.outputs)
    spread = float(torch.cat([x.flatten() for x in expected]).std()) or 1.0
    last_digits = LastDigits(
        reference,
        list(shipped.assignment.precisions),
        target.last_digits,
        batches,
        expected,
        partial(_scored, target, metric),
    )
    accepted = _accepted(target, shipped.assignment, differences, spread, last_digits, trace)
    is_median = target.has_ties(shipped.assignment)
    more = _more_differences(
        target, is_median, accepted / spread, [others for _, others in answered], ran.more
    )
    sizes = check_size(target, shipped, made)
    if was_searched_for:
        check_budget(target, shipped.assignment, sizes.found)
    otherwise, warnings = _otherwise(target, batches, expected, ran)
    unseen = sorted({path for _, others in answered for path in others} - set(more))
    warnings += [f"the output {path} is not compared" for path in unseen]
    if sizes.missing:
        warnings.append(told_missing(sizes.missing, model, batches[0]))
    return ExportCheck(
        target=spelled,
        fingerprint=shipped.assignment.fingerprint,
        num_layers=len(shipped.quantized),
        num_examples=len(differences),
        max_difference=float(differences.max()),
        median_difference=float(differences.median()),
        accepted_difference=accepted,
        spread=spread,
        max_weight_difference=weights,
        kl_from_original_nats=_divergence(originals, ran.outputs),
        kl_of_simulation_nats=_divergence(originals, expected),
        file_bytes=sizes.found,
        predicted_bytes=sizes.predicted,
        promised_bytes=sizes.promised,
        examples_per_second=batches[0].size / ran.seconds,
        tokens_per_second=_num_tokens(batches[0]) / ran.seconds or None,
        dtype=DTYPE_NAMES[parameter_dtype(shipped.model)],
        versions={"mpq": version("mpq"), **ran.versions},
        kinds=_counted(ran.kinds.values()),
        was_searched_for=was_searched_for,
        figures=target.figures(made),
        median_from_search=None
        if searched is expected
        else float(_differences(target, batches, searched, ran.outputs).median()),
        kl_of_search_nats=None if searched is expected else _divergence(originals, searched),
        max_differences_otherwise=otherwise,
        max_differences_of_others=more,
        unscored=tuple(path for path in more if path not in output_names(metric)),
        warnings=tuple(warnings),
        examples_are_batches=any(batch.is_whole for batch in batches),
    )


def _differences(
    target: Target, batches: Sequence[Batch], expected: Sequence[Tensor], outputs: Sequence[Tensor]
) -> Tensor:
    """``[N]`` largest difference of each example's outputs."""
    for want, got in zip(expected, outputs, strict=True):
        if want.shape != got.shape:
            raise ModelError(
                f"{target.name}: its runtime's outputs are {tuple(got.shape)}, the simulation's "
                f"{tuple(want.shape)}"
            )
    triples = zip(batches, expected, outputs, strict=True)
    return torch.cat([largest(batch, a - b) for batch, a, b in triples])


def _otherwise(
    target: Target, batches: Sequence[Batch], expected: Sequence[Tensor], ran: FreshRun
) -> tuple[dict[str, float], list[str]]:
    """Largest differences under other settings, and sentences of those that gave no outputs."""
    found: dict[str, float] = {}
    warnings: list[str] = []
    for name, outputs in ran.others.items():
        try:
            if isinstance(outputs, str):
                raise ModelError(outputs)
            found[name] = float(_differences(target, batches, expected, outputs).max())
        except ModelError as error:
            warnings.append(f"{name} could not be compared: {error}")
    return found, warnings


def _accepted(
    target: Target,
    assignment: Assignment,
    differences: Tensor,
    spread: float,
    last_digits: LastDigits,
    trace: Trace,
) -> float:
    """How far outputs may be apart; refuses those that are further."""
    worst, median = float(differences.max()), float(differences.median())
    is_median = target.has_ties(assignment)
    is_smooth = not is_median and not assignment.rounds_inputs
    judged = median if is_median else worst
    accepted, named = target.tolerance * spread, ""
    # A comparison with nan is false: what is not within is refused.
    if not judged <= accepted:
        if is_median:
            accepted = max(accepted, last_digits.accepted_of_median())
        elif is_smooth:
            simulated, names = last_digits.simulated, last_digits.layers
            # However far all of them add up to, no layer by itself is off.
            named = one_apart(simulated, names, trace(), target.tolerance)
            accepted = accepted if named else max(accepted, last_digits.accepted_of_worst(spread))
    if judged <= accepted:
        return accepted
    where = ""
    if trace():
        named = named or _first_apart(target, is_smooth, last_digits, trace())
        where = f". {named or 'No single layer that is compared differs'}"
    raise ModelError(
        f"{target.name}: its runtime's outputs differ from the simulation's by {worst:.3g} "
        f"(median {median:.3g}, accepted {accepted:.3g}; their standard deviation is "
        f"{spread:.3g}), though all weights are decoded alike{where}; nothing was written"
    )


def _first_apart(
    target: Target, is_smooth: bool, last_digits: LastDigits, found: Mapping[str, Tensor]
) -> str:
    """The first layer whose output differs, for people; empty where none does."""
    batch = last_digits.batches[0].slice(0, target.num_traced)
    simulated = last_digits.simulated
    if isinstance(simulated, Stepwise):
        return simulated.first_apart(batch, found)
    expected = traced(simulated, lambda: simulated(*batch.args, **batch.kwargs))
    if not is_smooth:
        # First of all by themselves: ties part the two networks wherever they fall.
        named = any_apart(simulated, expected, found, target.tolerance)
        return named or first_apart(expected, found, target.tolerance)
    accepted = last_digits.accepted_of_layers(batch, expected)
    return first_apart(expected, found, target.tolerance, accepted)


def _num_tokens(batch: Batch) -> int:
    """Ids in a batch; 0 where its inputs are numbers."""
    first = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
    is_ids = isinstance(first, Tensor) and not first.is_floating_point() and first.ndim == 2
    return first.numel() if is_ids else 0


def _counted(values: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return found


def _check_weights(target: Target, shipped: Shipped, ran: FreshRun) -> float:
    """Largest difference of the decoded weights; names the first layer that differs."""
    missing = {layer.name: layer for layer in shipped.quantized}
    decoded = dict.fromkeys(missing, 0.0)
    for name, found in ran.weights():
        layer = missing.pop(name, None)
        if layer is None:
            continue
        layer_module = shipped.module.get_submodule(name)
        rounded = shipped.quantizer.weight(name, layer_module, layer.precision.weight)
        expected = layout_of(layer_module).to_rows(rounded).float().cpu()
        same_shape = expected.shape == found.shape
        error = float((expected - found).abs().max()) if same_shape else float("nan")
        decoded[name] = error / (float(expected.abs().max()) or 1.0)
        if not decoded[name] <= WEIGHT_TOLERANCE:
            raise ModelError(
                f"{target.name}: the weight of layer {name!r} at {layer.precision} is decoded as "
                f"another one: {decoded[name]:.3g} of its largest number apart, "
                f"{tuple(found.shape)} for {tuple(expected.shape)}; nothing was written"
            )
    if missing:
        raise ModelError(
            f"{target.name}: its reader found no quantized weight of layer {next(iter(missing))!r} "
            f"({len(missing)} of {len(decoded)} layers); nothing was written"
        )
    return max(decoded.values(), default=0.0)


@torch.no_grad()
def _answer(
    target: Target, module: nn.Module, batch: Batch, metric: OutputMetric
) -> tuple[Tensor, dict[str, Tensor]]:
    """The output that is scored, or the first of them, and the others by path."""
    found = compared_tensors(module(*batch.args, **batch.kwargs), metric)
    (_, first), *others = found.items()
    return _compared(target, first, batch), {path: x.float().cpu() for path, x in others}


def _scored(target: Target, metric: OutputMetric, outputs: Any, batch: Batch) -> Tensor:
    """The same output, alone."""
    return _compared(target, next(iter(scored_tensors(outputs, metric).values())), batch)


def _compared(target: Target, output: Tensor, batch: Batch) -> Tensor:
    return target.compared(output.float(), batch).cpu()


def _more_differences(
    target: Target,
    is_median: bool,
    tolerance: float,
    expected: Sequence[Mapping[str, Tensor]],
    ran: Sequence[Mapping[str, Tensor]],
) -> dict[str, float]:
    """Largest difference of every other output that both have; refuses what is too far.

    Args:
        target: What wrote the files.
        is_median: Whether the median is judged, as inputs are rounded while running.
        tolerance: Accepted difference, in standard deviations of an output.
        expected: Path to output, of every batch.
        ran: The same of the runtime; empty where it tells no others.
    """
    found: dict[str, float] = {}
    for path in expected[0] if ran else ():
        pairs = [(one[path], other.get(path)) for one, other in zip(expected, ran, strict=True)]
        alike = [(a, b) for a, b in pairs if b is not None and a.shape == b.shape]
        if len(alike) < len(pairs):
            continue  # its rows are no examples: there is a warning
        apart = torch.cat([(a - b).abs().flatten() for a, b in alike])
        values = torch.cat([a.flatten() for a, _ in alike])
        spread = (float(values.std()) if values.numel() > 1 else 0.0) or 1.0
        judged = float(apart.median() if is_median else apart.max())
        if not judged <= tolerance * spread:
            raise ModelError(
                f"{target.name}: its runtime's output {path} differs from the simulation's by "
                f"{float(apart.max()):.3g} (accepted {tolerance * spread:.3g}, spread "
                f"{spread:.3g}); nothing was written"
            )
        found[path] = float(apart.max())
    return found


def _divergence(originals: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Mean KL divergence per position, in nats, of outputs taken as logits."""
    pairs = list(zip(originals, outputs, strict=True))
    total = sum(
        float(torch.nn.functional.kl_div(
            b.double().log_softmax(-1), a.double().log_softmax(-1), log_target=True, reduction="sum"
        ))
        for a, b in pairs
    )  # fmt: skip
    return total / sum(a[..., 0].numel() for a, _ in pairs)
