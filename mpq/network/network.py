"""A model made ready: a copy that shares its parameters, with every quantizable layer known."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from mpq.errors import ModelError
from mpq.network.behaviour import (
    check_repeatable,
    mixes_examples,
    unchecked_rows,
)
from mpq.network.cached_attention import open_caches
from mpq.network.computed_check import opening_changes
from mpq.network.computed_sources import held_by
from mpq.network.computed_uses import ComputedUse
from mpq.network.coverage import Coverage
from mpq.network.example_axes import find_axes, find_second_axis
from mpq.network.examples import Batch, Calibration
from mpq.network.finding import Finding
from mpq.network.finding_operands import open_operands
from mpq.network.folding import fold as fold_in
from mpq.network.free_weights import find_free_weights
from mpq.network.kept_tokens import CacheLayers, KeptTokens
from mpq.network.layer import Layer, fingerprint, ties_of, with_owners
from mpq.network.liveness import Lifetimes
from mpq.network.memory import stored_bytes
from mpq.network.metric import KL, OutputMetric
from mpq.network.modules import check_model, device_of, stored_tensors, weight_of
from mpq.network.open_weights import open_computed, open_weights
from mpq.network.own_copy import own_copy
from mpq.network.patterns import Pattern, matching
from mpq.network.randomness import random_state_kept
from mpq.network.reach import Reach
from mpq.network.refusals import refused_modules
from mpq.network.running_steps import RunningSteps
from mpq.network.same_start import begin_alike
from mpq.network.tied_calls import find_tied_calls, tie_calls
from mpq.network.weight_layout import RowLayout, layout_of
from mpq.network.writes import parameters_kept

_TOLD = 3
"""Parameters in an error that says why there is no layer."""


@final
@dataclass(frozen=True, eq=False)
class Network:
    """A model that layers can be measured in and quantized in; the user's model stays as it is.

    Args:
        module: Own copy of the model that shares its parameters: attention and recurrent networks
            are opened into layers, BatchNorm is folded into the convolution before it.
        layers: ``[L]`` in the order of their first call.
        ties: Layers that read one tensor or use one parameter.
        folded: Convolution to the BatchNorm that was folded into it.
        reach: Which of them the data reaches by how much, and what it never calls.
        metric: How far its output is from another's.
        lifetimes: Which tensors are held in which step, for one example; ``None``: not traced.
        coverage: What of the user's model lies in these layers, and what does not.
        is_mixing: Whether rows of a batch change each other's outputs, so that a batch is one
            example.
        unscored: Paths of what the network returns besides what the metric looks at.
        allow_randomness: Seed of the generators in every pass, for a network that draws.
        axes: Where the examples lie in its inputs: see ``Batch.axes``.
        unchecked_rows: Why ``is_mixing`` could not be found out; empty: it was.
        left_out: Layers that the data reaches and the user left out (include, exclude).
        num_positions: Of an example of the first batch, in what the metric reads of the output.
        blocks: Modules of ``module`` that a pass with gradients runs twice, to keep what they read
            alone (``mpq.sensitivity.passes.borders``); none: it keeps all.
        tokens_kept: That key-value caches keep as they came; ``None``: caches are no layers.
        steps: Of the examples that run, where the network has steps; see ``following``.
        operands_left: What is read by an operation between layers and stays as it came, and why;
            ``None``: operands are no layers.
    """

    module: nn.Module
    layers: tuple[Layer, ...]
    ties: tuple[tuple[str, ...], ...]
    folded: Mapping[str, str] = field(default_factory=dict)
    reach: Reach = field(default_factory=Reach)
    metric: OutputMetric = KL
    lifetimes: Lifetimes | None = None
    coverage: Coverage | None = None
    is_mixing: bool = False
    unscored: tuple[str, ...] = ()
    allow_randomness: int | None = None
    axes: tuple[int | None, ...] | None = None
    unchecked_rows: str = ""
    left_out: tuple[str, ...] = ()
    num_positions: int = 1
    blocks: Sequence[nn.Module] = ()
    tokens_kept: KeptTokens | None = None
    steps: RunningSteps | None = None
    operands_left: Mapping[str, str] | None = None

    @classmethod
    @random_state_kept()
    def of(
        cls,
        model: nn.Module,
        data: Any,
        include: Sequence[Pattern] = (),
        exclude: Sequence[Pattern] = (),
        fold: bool = True,
        metric: OutputMetric = KL,
        allow_randomness: int | None = None,
        caches: CacheLayers | None = None,
        operands: bool = False,
    ) -> Self:
        """Finds the layers with two forward passes over all batches, whose answers are compared.

        The first batch, and every other one that reaches a layer first, is run once more: hooks see
        what its layers read. A last pass over two of its examples finds what lies between layers.
        Where a layer reads a part of the examples (an expert), all are run one by one as well.

        Args:
            model: The user's network, in evaluation mode; it stays as it is.
            data: Examples, as ``Calibration`` takes them.
            include: Globs or predicates; only matching layers. Empty: all.
            exclude: Globs or predicates; without matching layers.
            fold: Whether BatchNorm is folded into the convolution that feeds it.
            metric: How the outputs of quantized networks are compared with the original's.
            allow_randomness: Where the generators of torch, numpy and Python start in every pass;
                ``None``: they are left alone, and a network that draws is refused.
            caches: Key-value caches that become layers; ``None``: none does.
            operands: Whether operands of operations between layers are layers, see ``Layer.kind``.

        Raises:
            ModelError: If the model is in training mode, draws (in any batch), has weights that are
                not finite, no layer that is called, an output that the metric cannot read, or a
                layer that can neither be quantized nor is left out.
            UnknownNameError: If a glob or a predicate matches nothing.
        """
        # First of all: every step below takes evaluation mode and finite weights for granted.
        check_model(model)
        module = begin_alike(own_copy(model), allow_randomness)
        examples = Calibration.of(data)
        batch = examples.first_of_several().to(device_of(module))
        # Before anything else runs: our copy shares the user's memory.
        with parameters_kept(model):
            if caches is not None:
                open_caches(module, batch, caches)
            # Before the first cut: to this network an input may be shared by all examples.
            axes = find_axes(module, batch, metric, allow_randomness is not None)
            examples, batch = examples.along(axes), replace(batch, axes=axes)
            matrices: set[str] = set()
            reasons: dict[str, str] = {}
            _open(module, examples, batch, metric, (), matrices, reasons)
            left = open_operands(module, _batches(module, examples)) if operands else None
            # Before anything is measured: with another answer every time all would be noise.
            outputs, rows, others = check_repeatable(module, batch, metric, allow_randomness)
        if rows != batch.size:
            is_drawing = allow_randomness is not None
            axes = find_second_axis(module, batch, metric, rows, is_drawing) or axes
            examples, batch = examples.along(axes), replace(batch, axes=axes)
            outputs = batch.as_examples(outputs.reshape(rows, -1, *outputs.shape[2:]))
        is_mixing = mixes_examples(module, batch, metric, outputs)
        # Before folding, as the traces say who reads a convolution's output.
        looked_at = examples.whole() if is_mixing else examples
        found = _find(module, looked_at, metric, allow_randomness, (batch, outputs))
        held = held_by(model, module)
        # Also before: folding gives layers weights of their own memory.
        weights = {x.name: weight_of(module.get_submodule(x.name)) for x in found.layers}
        # What functions read of a weight is not folded.
        also = found.reach.also_used
        folded = {c: n for c, n in found.foldable.items() if fold and c not in also}
        if folded:
            fold_in(module, folded, found.batches, metric)
        layers = _select(found, include, exclude, reasons)
        chosen = {x.name: weights[x.name] for x in layers}
        left_out = tuple(name for name in weights if name not in chosen)
        constant = stored_bytes(_unquantized(module, layers, left_out))
        coverage = Coverage.of(
            model, chosen.values(), [weights[name] for name in left_out], constant, held, matrices,
            folded.values(), reasons,
        )  # fmt: skip
        layers, lifetimes = found.with_dataflow(layers)
        reach, ties = found.reach.of(layers), ties_of(layers)
        return cls(
            module, layers, ties, folded, reach, metric, lifetimes, coverage, is_mixing, others,
            allow_randomness, axes, unchecked_rows(batch), left_out, outputs.shape[1], (),
            caches and caches.tokens, operands_left=left,
        )  # fmt: skip

    @property
    def uncalled(self) -> tuple[str, ...]:
        """Quantizable layers that are never called on the data; left as they are.

        ``reach`` tells those that it never reaches from those whose weight is used otherwise.
        """
        return self.reach.uncalled

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return device_of(self.module)

    @property
    def why_uncut(self) -> str:
        """Why the examples of a batch have to go through it together; empty: they need not.

        Rows that change each other's outputs are one example (``examples``), and are not cut.
        """
        return "" if self.allow_randomness is None else "the network draws for whole batches"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the layers' names, kinds and weight shapes."""
        return fingerprint(layer.signature for layer in self.layers)

    @property
    def num_unquantized(self) -> int:
        """Parameters and statistics that are no weight of a layer: biases, norms, excluded layers.

        A complex number counts as two. What a module computes from its configuration (not
        persistent) is not counted.
        """
        # By identity: a tied weight is one parameter, and a state dict lists it under each name.
        others = {id(t): t for t in _unquantized(self.module, self.layers, self.left_out)}
        return sum(
            t.numel() * (2 if t.is_complex() else int(t.is_floating_point()))
            for t in others.values()
        )

    @property
    def unquantized(self) -> Iterator[Tensor]:
        """What is stored besides the layers' weights, as it is; a tensor may come twice."""
        return _unquantized(self.module, self.layers, self.left_out)

    @property
    def constant_bytes(self) -> int:
        """Size of what a quantized network stores besides the layers' weights, as it is.

        Biases, norms, persistent buffers, weights outside all layers and layers left out, each in
        its own dtype; of a BatchNorm that was folded, the biases that it became. A parameter that
        a layer shares with one that was left out is stored twice, and counted here.
        """
        return stored_bytes(_unquantized(self.module, self.layers, self.left_out))

    def layer_module(self, name: str) -> nn.Module:
        """The module of a layer."""
        return self.module.get_submodule(name)

    def matching(self, pattern: Pattern, option: str) -> tuple[str, ...]:
        """Names of the layers that a glob or a predicate matches.

        Raises:
            UnknownNameError: If it matches nothing.
        """
        modules = {layer.name: self.layer_module(layer.name) for layer in self.layers}
        return matching(modules, pattern, option)

    def weight(self, name: str) -> Tensor:
        """The weight of a layer, detached."""
        return weight_of(self.layer_module(name)).detach()

    @property
    def shared_weights(self) -> dict[str, str]:
        """Layers that have another one's parameter, read as rows in the same way: the first one."""
        first: dict[tuple[int, RowLayout], str] = {}
        modules = {layer.name: self.layer_module(layer.name) for layer in self.layers}
        keys = {name: (id(weight_of(m)), layout_of(m)) for name, m in modules.items()}
        found = {name: first.setdefault(key, name) for name, key in keys.items()}
        return {name: other for name, other in found.items() if name != other}

    def outputs(self, batch: Batch) -> Tensor:
        """``[N, P, C]`` for a batch that is on the network's device."""
        return batch.as_examples(self.metric.positions(self.module(*batch.args, **batch.kwargs)))

    def batches(self, data: Calibration) -> Iterator[Batch]:
        """Batches on the network's device."""
        return (batch.to(self.device) for batch in data)

    def examples(self, data: Calibration) -> Calibration:
        """The data with the examples that this network has: batches, where it mixes their rows."""
        data = data.along(self.axes)
        return data.whole() if self.is_mixing else data


def find_layers(model: nn.Module, data: Any) -> tuple[Layer, ...]:
    """Every quantizable layer of a model, with shapes, MACs and calls per example.

    Args:
        model: The user's network, in evaluation mode; it stays as it is.
        data: See ``Calibration``; all batches are looked at.

    Raises:
        ModelError: See ``Network.of``.
    """
    return Network.of(model, data).layers


def _unquantized(
    module: nn.Module, layers: Sequence[Layer], left_out: Sequence[str]
) -> Iterator[Tensor]:
    """What is stored as it is; a layer's weight where a layer that was left out has it as well."""
    weights = {id(weight_of(module.get_submodule(layer.name))) for layer in layers}
    yield from (tensor for tensor in stored_tensors(module) if id(tensor) not in weights)
    for name in left_out:
        weight = weight_of(module.get_submodule(name))
        if id(weight) in weights:
            yield weight


def _batches(module: nn.Module, data: Calibration) -> Iterator[Batch]:
    device = device_of(module)
    return (batch.to(device) for batch in data)


def _find(
    module: nn.Module,
    data: Calibration,
    metric: OutputMetric,
    seed: int | None,
    known: tuple[Batch, Tensor],
) -> Finding:
    """The layers; a weight that is used without its module becomes one after a first look."""
    found = Finding.of(module, data, metric, seed, known)
    asked = (*found.reach.without_call, *found.refused)
    is_opened = bool(asked) and _open(module, data, found.batches[0], metric, asked)
    also = found.reach.also_used
    tied = find_tied_calls(module, _batches(module, data), also) if also else {}
    if not is_opened and not tied:
        return found
    tie_calls(module, tied)
    return Finding.of(module, data, metric, seed)


def _open(
    module: nn.Module,
    data: Calibration,
    batch: Batch,
    metric: OutputMetric,
    of_layers: Sequence[str],
    matrices: set[str] | None = None,
    reasons: dict[str, str] | None = None,
) -> bool:
    """Makes what functions use as weights layers, in place; see ``find_free_weights``."""
    computed: list[ComputedUse] = []
    reasons = {} if reasons is None else reasons
    batches = _batches(module, data)
    uses = find_free_weights(module, batches, of_layers, matrices, reasons, computed)
    why = opening_changes(module, batch, metric, uses, computed) if computed else ""
    if why:
        reasons |= {name: why for each in computed for name in each.sources}
        computed = []
    open_weights(module, uses)
    open_computed(module, computed)
    return bool(uses or computed)


def _select(
    found: Finding,
    include: Sequence[Pattern],
    exclude: Sequence[Pattern],
    reasons: Mapping[str, str],
) -> tuple[Layer, ...]:
    """The layers that are asked for; refuses what cannot be one only where it is asked for, too."""
    refused = {**found.refused, **refused_modules(found.module)}
    names = [*(layer.name for layer in found.layers), *refused]
    modules = {name: found.module.get_submodule(name) for name in names}
    # Excluding comes last, so that `--exclude` takes away from what `--include` gave.
    kept = set(modules if not include else ())
    for pattern in include:
        kept.update(matching(modules, pattern, "--include"))
    for pattern in exclude:
        kept.difference_update(matching(modules, pattern, "--exclude"))
    _check_refused([why for name, why in refused.items() if name in kept])
    if not kept:
        uncalled = found.reach.uncalled
        where = f" ({len(uncalled)} are never called on this data)" if uncalled else ""
        why = "".join(f"; {name} is {reason}" for name, reason in islice(reasons.items(), _TOLD))
        raise ModelError(f"the model has no quantizable layer{where}, or all are excluded{why}")
    return with_owners(tuple(layer for layer in found.layers if layer.name in kept))


def _check_refused(sentences: Sequence[str]) -> None:
    if sentences:
        more = f" (and {len(sentences) - 1} more such)" if len(sentences) > 1 else ""
        raise ModelError(f"{sentences[0]}{more}")
