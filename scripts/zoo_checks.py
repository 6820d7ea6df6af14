"""What is checked of every model of the zoo, whatever the model."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import mpq
from mpq.errors import ModelError, MpqError
from mpq.network.output_paths import tensor_outputs
from mpq.network.outputs import scored_tensor
from mpq.report.save import save_result
from scripts.zoo_inputs import EXAMPLES
from scripts.zoo_models import Built

ESTIMATORS: Final = ("auto", "weight-error")
CANDIDATES: Final = ("w4", "w8")
LIMIT: Final = "effective_bits=0.85x:w8"
"""Between the candidates. Relative, as the scales of rows this short take bits, too."""
SOLVER: Final = "lagrangian"
"""Not the default, which takes seconds to prove what is best with interactions: it is the networks
that are tried here."""
TOLERANCE: Final = 1e-5
"""Of the largest output: how far a network with nothing quantized may be from the original."""
Row = dict[str, Any]


def look(built: Built, estimators: Sequence[str] = ESTIMATORS) -> Row:
    """Takes a model through mpq, and checks what holds whatever the model.

    All parameters and buffers are counted, in layers or outside. The model is left as found, also
    where it is refused. With nothing quantized the outputs are the original's. The quantized
    network loses what the search measured. What is loaded is what was saved.

    Returns:
        The row of the table, with everything that does not hold in ``wrong``.
    """
    before = state_of(built.model)
    row: Row = {"status": "right", "wrong": [], "estimators": {}}
    try:
        _search(row, built, estimators)
    except MpqError as error:
        row |= {"status": "sentence", "sentence": str(error)}
    row["wrong"] += [f"not left as found: {x}" for x in changed(before, state_of(built.model))]
    return {**row, "status": "wrong"} if row["wrong"] else row


def _search(row: Row, built: Built, estimators: Sequence[str]) -> None:
    """Fills in the row, estimator by estimator."""
    first, second, held_out = built.batches
    metric = _metric(built.model, first)
    task = mpq.Task(built.model, [first, second], [held_out], candidates=CANDIDATES, metric=metric)
    row["metric"] = metric
    for name in estimators:
        began = time.perf_counter()
        result = mpq.search(task, [LIMIT], sensitivity=name, solver=SOLVER)
        with torch.random.fork_rng(devices=()):  # passes of these checks may draw: not mpq's doing
            if name == estimators[0]:  # the same for all of them
                row["wrong"] += _faults_unquantized(task, result, held_out)
            row["wrong"] += [f"{name}: {why}" for why in _faults(task, result, held_out)]
        seconds = round(time.perf_counter() - began, 2)
        row["estimators"][name] = {"seconds": seconds, **_spot_check(result)}
        row |= _shares(result)


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that mpq must leave as it is: numbers, modes, hooks, gradients, random state."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    modules = dict(model.named_modules())
    return {
        "values": {n: (t.detach().clone(), id(t), t.requires_grad) for n, t in tensors.items()},
        "gradients": {n: t.grad for n, t in tensors.items()},
        "modes": {n: m.training for n, m in modules.items()},
        "classes": {n: type(m) for n, m in modules.items()},
        "attributes": {n: sorted(vars(m)) for n, m in modules.items()},
        "hooks": {
            n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in modules.items()
        },
        "random state": torch.get_rng_state(),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what differs between two states."""
    return [name for name, value in before.items() if not _is_same(value, after[name])]


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        same_type = isinstance(other, Tensor) and one.dtype == other.dtype
        # As bytes, since a nan differs from itself.
        return same_type and torch.equal(_bytes(one), _bytes(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _faults(task: mpq.Task, result: mpq.SearchResult, batch: dict[str, Any]) -> Iterator[str]:
    """What does not hold of a result."""
    model, coverage = task.model, result.coverage
    tensors = {id(t): t.numel() for t in (*model.parameters(), *model.buffers())}
    assert coverage is not None
    counted = coverage.covered_elements + sum(x.num_elements for x in coverage.outside)
    if not counted == coverage.num_elements == sum(tensors.values()):
        yield f"{counted} numbers counted of {sum(tensors.values())}"
    found, said = _loss(task, result, batch), result.measured.divergence
    if abs(found - said) > 1e-3 * abs(said) + 1e-9:
        yield f"the quantized network loses {found:.6g}, the search measured {said:.6g}"
    with tempfile.TemporaryDirectory() as folder:
        # Without the sections, whose pictures would take most of a sweep's time.
        save_result(result, folder, result.frontier(num_points=2), sections=())
        again = mpq.load(folder)
    if again.assignment != result.assignment or not bool(
        (again.problem.loss.values == result.problem.loss.values).all()
    ):
        yield "what is loaded is not what was saved"


def _faults_unquantized(task: mpq.Task, result: mpq.SearchResult, batch: Row) -> Iterator[str]:
    error = unquantized_error(task.model, result.assignment, batch)
    if error > TOLERANCE:
        yield f"with nothing quantized the outputs differ by {error:.2g} of the largest"


def unquantized_error(model: nn.Module, assignment: mpq.Assignment, batch: dict[str, Any]) -> float:
    """Largest difference of any output with all layers at fp32, as a share of the largest."""
    fp32 = mpq.Precision.parse("fp32")
    layers = tuple(replace(x, precision=fp32, activation_range=None) for x in assignment.layers)
    plain = mpq.quantize(model, replace(assignment, layers=layers))
    with torch.no_grad():
        pairs = zip(_floats(model(**batch)), _floats(plain(**batch)), strict=True)
        return max((_error(one, other) for one, other in pairs), default=0.0)


def _floats(output: Any) -> list[Tensor]:
    leaves = tree_leaves(output)
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]


def _error(one: Tensor, other: Tensor) -> float:
    # Masked scores are infinite at the same places.
    difference = (one.double() - other.double()).masked_fill(one == other, 0.0)
    finite = one[one.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return float(difference.nan_to_num(nan=0.0).abs().max()) / max(largest, 1e-30)


def _loss(task: mpq.Task, result: mpq.SearchResult, batch: dict[str, Any]) -> float:
    """Of the quantized network on a batch, beside mpq's own evaluation of it."""
    quantized, metric = mpq.quantize(task.model, result.assignment), task.output_metric
    with torch.no_grad():
        pair = (metric.positions(network(**batch)) for network in (task.model, quantized))
        return float(metric.divergence(*pair).mean())


def _metric(model: nn.Module, batch: dict[str, Any]) -> str:
    """Of logits, of the one tensor that is compared, or of the first three that have names."""
    # A network that draws must not leave a mark of ours.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        output = model(**batch)
    logits = getattr(output, "logits", None)
    axis = 1 if isinstance(logits, Tensor) and logits.ndim > 3 else -1
    if isinstance(logits, Tensor) and logits.ndim > 1 and logits.shape[axis] > 1:
        return "kl"
    try:
        scored_tensor(output)
    except ModelError:
        named = [(path, x) for path, x in tensor_outputs(output) if path and x.ndim]
        # Of examples: a table of prototypes or a logit scale is the same for all of them.
        paths = [path for path, x in named if len(x) == EXAMPLES][:3]
        return f"outputs:terms={'+'.join(paths)}" if paths else "squared-error"
    return "squared-error"


def _spot_check(result: mpq.SearchResult) -> Row:
    check = result.spot_check
    if check is None:
        return {}
    largest = max((x.measured for x in check.cells), default=0.0)
    # What is a millionth of the largest loss is rounding.
    told = [x for x in check.cells if x.measured > 1e-6 * largest]
    ratios = [x.predicted / x.measured for x in told]
    return {
        "predicted_over_measured": float(f"{median(ratios):.3g}") if ratios else None,
        "cells": len(check.cells),
        "cells_off": sum(x.is_off for x in check.cells),
        "no_gradient": len(check.no_gradient),
        "repaired": len(check.repaired),
        "fallback": check.fallback,
    }


def _shares(result: mpq.SearchResult) -> Row:
    coverage = result.coverage
    assert coverage is not None
    return {
        "layers": len(result.layers),
        "share_in_layers": round(coverage.covered_bytes / max(coverage.num_bytes, 1), 4),
        "share_of_weights_outside": round(
            coverage.weight_bytes_outside / max(coverage.num_bytes, 1), 4
        ),
        "weights_outside": [x.name for x in coverage.weights_outside[:4]],
    }
