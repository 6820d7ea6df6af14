"""Simulates any format in floating point: the reference for every other backend."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpq._support.pages import is_streaming
from mpq.backends._base import HELD, Backend
from mpq.errors import MismatchError, ModelError
from mpq.network.batch_norm import changed_output, fold_batch_norm, fold_refusal
from mpq.network.cached_attention import give_caches
from mpq.network.computed_uses import assigned_uses
from mpq.network.examples import Batch
from mpq.network.handed_operands import give_operands
from mpq.network.layer import CACHES, OPERANDS, WEIGHTLESS, signature
from mpq.network.metric import OutputMetric
from mpq.network.modules import check_model
from mpq.network.open_weights import open_computed, open_weights, uses_of
from mpq.network.operand import CacheShape, CallShape
from mpq.network.own_copy import own_copy
from mpq.network.refusals import mark_simulated, simulated, weight_refusal
from mpq.network.reparametrized import reparametrized
from mpq.network.running_steps import RunningSteps
from mpq.network.same_start import begin_alike
from mpq.network.tied_calls import tie_calls, tied_calls_of
from mpq.network.tracing import kind_of
from mpq.network.weight_use import Use
from mpq.network.with_tuned import with_tuned
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import ORIGINAL
from mpq.quantization.quantizer import Quantizer, install
from mpq.quantization.rounded_when_read import round_when_read
from mpq.quantization.running_clusters import RunningClusters


@final
@dataclass(frozen=True)
class Simulate(Backend):
    """Rounded numbers in floating point, layer by layer, in eager torch.

    BatchNorm is folded and attention opened as when the assignment was found; weights hold the
    rounded numbers in the model's own dtype; inputs of layers are rounded by forward pre-hooks.
    Unquantized parameters are shared with the given model. While a network is streamed
    (``mpq.network.mapped.streaming``), weights are rounded whenever they are read.
    """

    name: ClassVar[str] = "simulate"
    summary: ClassVar[str] = "any format, in floating point: the reference (default)"
    makes_networks: ClassVar[bool] = True
    writes_files: ClassVar[bool] = False
    caches: ClassVar[str] = HELD
    operands: ClassVar[str] = HELD

    def quantize(self, model: nn.Module, assignment: Assignment) -> nn.Module:
        """See ``Backend.quantize``.

        Raises:
            MismatchError: If a layer is missing, or of another kind or shape; names them.
            ModelError: If the model is in training mode, a layer is quantized already, or a range
                is missing.
        """
        # A copy, as layers get new weights and hooks.
        return with_precisions(prepared(model, assignment), assignment, quantizer_of(assignment))


def with_precisions(module: nn.Module, assignment: Assignment, quantizer: Quantizer) -> nn.Module:
    """A network that is ``prepared`` already, in the assigned formats: changed in place.

    Args:
        module: It gets other weights, and hooks.
        assignment: That it was prepared for.
        quantizer: ``quantizer_of`` the assignment, which may know its grids already.

    Raises:
        ModelError: If a range is missing.
    """
    # Asked for here, as a missing range would show only when the network runs.
    for layer in assignment.layers:
        if layer.kind != "embedding":  # reads indices, which have no range
            quantizer.ranges.of(layer.name, layer.precision.activation)
    if quantizer.steps is not None:
        quantizer.steps.running.follow(module)
    put_on = round_when_read if is_streaming() else install
    put_on(module, assignment.precisions, quantizer)
    for name, precision in assignment.precisions.items():
        if precision != ORIGINAL:
            mark_simulated(module.get_submodule(name), str(precision))
    return module


def prepared(model: nn.Module, assignment: Assignment) -> nn.Module:
    """A copy that shares its parameters, checked, opened and folded as when it was searched."""
    # First of all: in training mode, BatchNorm has no fixed numbers to fold.
    check_model(model)
    module = own_copy(transformed(model, assignment)[0])
    _check_float(module, assignment)
    caches = {x.name: _cache_shape(x) for x in assignment.layers if x.kind in CACHES}
    give_caches(module, caches, assignment.tokens_kept)
    weighted = [x for x in assignment.layers if x.kind not in WEIGHTLESS]
    uses = {x.name: Use(x.kind, x.weight_shape, x.is_transposed) for x in weighted}
    texts = {x.name: x.computed for x in assignment.layers if x.computed}
    computed = assigned_uses(module, ((name, uses.pop(name), text) for name, text in texts.items()))
    tied = tied_calls_of(module, uses)
    open_weights(module, uses_of(module, uses))
    open_computed(module, computed.values())
    tie_calls(module, tied)
    operands = (x for x in assignment.layers if x.kind in OPERANDS)
    give_operands(module, {x.name: CallShape.of(x.kind, x.weight_shape) for x in operands})
    # Between the two: the assignment names opened projections, and folding needs each BatchNorm
    # that it names.
    _check(module, assignment)
    fold_batch_norm(module, assignment.folded)
    return module


def _cache_shape(layer: AssignedLayer) -> CacheShape:
    num_heads, head_size, _ = layer.weight_shape
    return CacheShape(layer.kind, num_heads, head_size)


def transformed(model: nn.Module, assignment: Assignment) -> tuple[nn.Module, Assignment]:
    """The model as the assignment transforms and tunes it, and what is left to do: all else.

    Args:
        model: As the user gave it, in evaluation mode; it stays as it is, and comes back where
            there is nothing to transform.
        assignment: With or without a reparametrization and tuned parameters.

    Raises:
        MismatchError: If the parameters are not those that were transformed, or tuned.
    """
    if assignment.reparametrization is not None:
        model = reparametrized(model, assignment.reparametrization.changes)
    if assignment.tuned is not None:
        model = with_tuned(model, assignment.tuned)
    return model, replace(assignment, reparametrization=None, tuned=None)


def check_folding(
    model: nn.Module, assignment: Assignment, batch: Batch, metric: OutputMetric
) -> None:
    """Refuses an assignment that folds a BatchNorm into a layer that does not feed it.

    Args:
        model: The network, as the user gave it.
        assignment: Of a network whose layers have the same names and shapes.
        batch: Examples on the network's device.
        metric: Says which of the outputs are looked at.

    Raises:
        MismatchError: If folding alone, without any rounding, changes the output.
    """
    if not assignment.folded:
        return
    seed = assignment.metadata.allow_randomness
    # What tuning changes is no matter of folding, and is meant to change the output.
    assignment = replace(assignment, tuned=None)
    with torch.no_grad():
        before, after = (
            metric.positions(begin_alike(module, seed)(*batch.args, **batch.kwargs))
            for module in (own_copy(model), prepared(model, assignment))
        )
    error = changed_output(before, after)
    if error:
        raise MismatchError(
            f"the assignment belongs to another network: folding BatchNorm as it says changes the "
            f"output by {error:.3g}, where it should change nothing"
        )


def quantizer_of(assignment: Assignment) -> Quantizer:
    """Rounds as the search did, with the assignment's calibrated ranges and stored weights."""
    ranges = ActivationRanges(
        {
            (layer.name, layer.precision.activation): layer.activation_range
            for layer in assignment.layers
            # Without a range are formats that need none, and `ActivationRanges` refuses all others.
            if layer.activation_range is not None
        }
    )
    weights, precisions = assignment.weights, assignment.precisions
    by_layer = {} if weights is None else weights.by_layer
    stored = {(name, precisions[name].weight): weight for name, weight in by_layer.items()}
    clusters = assignment.steps
    steps = None if clusters is None else RunningClusters(RunningSteps(clusters.argument), clusters)
    return Quantizer(ranges, assignment.weight_range, assignment.numerics, stored, steps=steps)


def _check_float(module: nn.Module, assignment: Assignment) -> None:
    """Refuses to round once more what a simulation has rounded."""
    modules = dict(module.named_modules(remove_duplicate=False))
    for layer in assignment.layers:
        why = simulated(layer.name, modules[layer.name]) if layer.name in modules else None
        if why:
            raise ModelError(why)


def _check(module: nn.Module, assignment: Assignment) -> None:
    """Every assigned layer is there, with its kind and shape, and so are the folded norms."""
    modules = dict(module.named_modules(remove_duplicate=False))
    problems = []
    for layer in assignment.layers:
        here = _signature(layer.name, modules.get(layer.name))
        if here is None:
            problems.append(f"lacks {layer.signature!r}")
        elif here != layer.signature:
            problems.append(f"has {here!r} instead of {layer.signature!r}")
    for convolution, norm in assignment.folded.items():
        layer_module, norm_module = modules.get(convolution), modules.get(norm)
        if not isinstance(norm_module, _BatchNorm):
            problems.append(f"lacks BatchNorm {norm!r}")
        if layer_module is None or _signature(convolution, layer_module) is None:
            problems.append(f"lacks the layer {convolution!r} before BatchNorm {norm!r}")
        elif isinstance(norm_module, _BatchNorm):
            why = fold_refusal(layer_module, norm_module)
            if why:
                problems.append(f"cannot fold {norm!r} into {convolution!r}: {norm!r} {why}")
    if problems:
        # Another network may differ in every layer; five of them show which one it is.
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise MismatchError(
            f"the assignment belongs to another network: this one {'; '.join(problems[:5])}{more}"
        )


def _signature(name: str, layer_module: nn.Module | None) -> str | None:
    """``None`` for what is no layer, or has a weight that cannot be rounded."""
    kind = None if layer_module is None else kind_of(layer_module)
    if layer_module is None or kind is None or weight_refusal(name, layer_module):
        return None
    weight = layer_module.weight
    assert isinstance(weight, nn.Parameter)
    return signature(name, kind, tuple(weight.shape))
