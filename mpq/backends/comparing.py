"""A runtime's weights, outputs and bytes beside the simulation's: what differs is refused."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from mpq.backends.acceptance import Trace, accepted_of
from mpq.backends.export_check import ExportCheck
from mpq.backends.fresh import FreshRun
from mpq.backends.half_precision import DTYPE_NAMES, in_float32, parameter_dtype
from mpq.backends.last_digits import LastDigits, largest
from mpq.backends.simulate import prepared, with_precisions
from mpq.backends.stored import check_budget, check_kinds, check_size, told_missing
from mpq.backends.target import SQUARED_ERROR, Shipped, Target
from mpq.errors import ModelError
from mpq.network.examples import Batch
from mpq.network.mapped import release
from mpq.network.metric import OutputMetric
from mpq.network.modules import weight_of
from mpq.network.named_outputs import compared_tensors, output_names, scored_tensors
from mpq.network.weight_layout import layout_of
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.rounding import row_tiles

WEIGHT_TOLERANCE: Final = 1e-6
"""Float32's last digits, of a product of a scale and a code."""


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
    weights = check_decoded(target, shipped_32, ran.weights())
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
    accepted = accepted_of(target, shipped.assignment, differences, spread, last_digits, trace)
    judged = torch.median if target.has_ties(shipped.assignment) else torch.max
    others = [(batch, outputs) for batch, (_, outputs) in zip(batches, answered, strict=True)]
    more = _more_differences(target, judged, accepted.difference / spread, others, ran.more)
    sizes = check_size(target, shipped, made)
    if was_searched_for:
        check_budget(target, shipped.assignment, sizes.found)
    otherwise, warnings = _otherwise(target, batches, expected, ran)
    unseen = sorted({path for _, outputs in others for path in outputs} - set(more))
    warnings += accepted.warnings
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
        accepted_difference=accepted.difference,
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
        kinds=counted(ran.kinds.values()),
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


def _num_tokens(batch: Batch) -> int:
    """Ids in a batch; 0 where its inputs are numbers."""
    first = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
    is_ids = isinstance(first, Tensor) and not first.is_floating_point() and first.ndim == 2
    return first.numel() if is_ids else 0


def counted(values: Iterable[str]) -> dict[str, int]:
    """How often each is there."""
    found: dict[str, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return found


def check_decoded(target: Target, shipped: Shipped, weights: Iterable[tuple[str, Tensor]]) -> float:
    """Largest difference of the decoded weights, relative to the largest number of each.

    Args:
        target: What wrote the files.
        shipped: What was written.
        weights: Layer name and ``[O, K]`` float32, one after the other.

    Raises:
        ModelError: Names the first layer that differs, or is not there.
    """
    missing = {layer.name: layer for layer in shipped.quantized}
    decoded = dict.fromkeys(missing, 0.0)
    for name, found in weights:
        layer = missing.pop(name, None)
        if layer is None:
            continue
        layer_module = shipped.module.get_submodule(name)
        weight = weight_of(layer_module).detach()
        # In float32, in which all that is stored is exact.
        rows = layout_of(layer_module).to_rows(weight).float()
        decoded[name] = _apart(shipped, layer, rows, found)
        release([weight])
        if not decoded[name] <= WEIGHT_TOLERANCE:
            raise ModelError(
                f"{target.name}: the weight of layer {name!r} at {layer.precision} is decoded as "
                f"another one: {decoded[name]:.3g} of its largest number apart, "
                f"{tuple(found.shape)} for {tuple(rows.shape)}; nothing was written"
            )
    if missing:
        raise ModelError(
            f"{target.name}: its reader found no quantized weight of layer {next(iter(missing))!r} "
            f"({len(missing)} of {len(decoded)} layers); nothing was written"
        )
    return max(decoded.values(), default=0.0)


def _apart(shipped: Shipped, layer: AssignedLayer, rows: Tensor, found: Tensor) -> float:
    """Largest difference of a decoded weight ``[O, K]``, relative to the largest number."""
    if rows.shape != found.shape:
        return float("nan")
    errors, sizes = [], []
    rounded = partial(shipped.quantizer.rounded_rows, layer.name, rows, layer.precision.weight)
    for some in row_tiles(rows):
        expected = rounded(some).cpu()
        errors.append((expected - found[some]).abs().max())
        sizes.append(expected.abs().max())
    return float(torch.stack(errors).max()) / (float(torch.stack(sizes).max()) or 1.0)


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
    judged: Callable[[Tensor], Tensor],
    tolerance: float,
    expected: Sequence[tuple[Batch, Mapping[str, Tensor]]],
    ran: Sequence[Mapping[str, Tensor]],
) -> dict[str, float]:
    """Largest difference of every other output that both have; refuses what is too far.

    Args:
        target: What wrote the files.
        judged: Of the examples' largest differences ``[N]``, as of the first output: the median
            where inputs are rounded while running, else the largest.
        tolerance: Accepted difference, in standard deviations of an output.
        expected: Every batch, and path to output of it.
        ran: The same outputs of the runtime; empty where it tells no others.
    """
    found: dict[str, float] = {}
    for path in expected[0][1] if ran else ():
        triples = [(x, one[path], b.get(path)) for (x, one), b in zip(expected, ran, strict=True)]
        alike = [(x, a, b) for x, a, b in triples if b is not None and a.shape == b.shape]
        if len(alike) < len(triples):
            continue  # its rows are no examples: there is a warning
        apart = torch.cat([largest(x, a - b) for x, a, b in alike])
        values = torch.cat([a.flatten() for _, a, _ in alike])
        spread = (float(values.std()) if values.numel() > 1 else 0.0) or 1.0
        if not float(judged(apart)) <= tolerance * spread:
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
