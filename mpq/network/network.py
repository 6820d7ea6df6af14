"""A model made ready: a copy that shares its parameters, with every quantizable layer known."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from mpq.errors import ModelError
from mpq.network.attention import open_attention
from mpq.network.batch_norm import fold_batch_norm
from mpq.network.dataflow import Dataflow, with_sources
from mpq.network.examples import Batch, Calibration
from mpq.network.layer import Layer, fingerprint, ties_of, with_owners
from mpq.network.liveness import Lifetimes
from mpq.network.metric import KL, OutputMetric
from mpq.network.modules import check_model, device_of, share_parameters, weight_of
from mpq.network.patterns import Pattern, matching
from mpq.network.tracing import Trace, trace


@final
@dataclass(frozen=True, eq=False)
class Network:
    """A model that layers can be measured in and quantized in; the user's model stays as it is.

    Args:
        module: Own copy of the model that shares its parameters: attention projections are
            layers, BatchNorm is folded into the convolution before it.
        layers: ``[L]`` in the order of their first call.
        ties: Layers that read one tensor or use one parameter.
        folded: Convolution to the BatchNorm that was folded into it.
        uncalled: Quantizable layers that the data never reached; left as they are.
        metric: How far its output is from another's.
        lifetimes: Which tensors are held in which step, for one example; ``None``: not traced.
    """

    module: nn.Module
    layers: tuple[Layer, ...]
    ties: tuple[tuple[str, ...], ...]
    folded: Mapping[str, str] = field(default_factory=dict)
    uncalled: tuple[str, ...] = ()
    metric: OutputMetric = KL
    lifetimes: Lifetimes | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        data: Any,
        include: Sequence[Pattern] = (),
        exclude: Sequence[Pattern] = (),
        fold: bool = True,
        metric: OutputMetric = KL,
    ) -> Self:
        """Finds the layers with one forward pass over the first batch.

        A second pass, over two of its examples, finds what lies between the layers.

        Args:
            model: The user's network, in evaluation mode; it stays as it is.
            data: Examples, as ``Calibration`` takes them; only the first batch is used.
            include: Globs or predicates; only matching layers. Empty: all.
            exclude: Globs or predicates; without matching layers.
            fold: Whether BatchNorm is folded into the convolution that feeds it.
            metric: How the outputs of quantized networks are compared with the original's.

        Raises:
            ModelError: If the model is in training mode, has weights that are not finite, no layer
                that is called, a layer that cannot be quantized and is not excluded (its forward
                returns no tensor, say), or an output that the metric cannot read.
            UnknownNameError: If a glob or a predicate matches nothing.
        """
        # First of all: every step below takes evaluation mode and finite weights for granted.
        check_model(model)
        module = open_attention(share_parameters(model))
        batch = Calibration.of(data).first().to(device_of(module))
        # Before folding, as the trace says who reads a convolution's output.
        found = trace(module, batch, metric)
        folded = found.foldable if fold else {}
        if folded:
            _fold(module, folded, batch, metric)
        # After folding, so that a folded BatchNorm is no step and holds no memory.
        dataflow = Dataflow.of(module, batch, found.layers)
        layers = with_sources(_select(module, found, include, exclude), dataflow)
        ties, lifetimes = ties_of(layers), dataflow.lifetimes
        return cls(module, layers, ties, folded, found.uncalled, metric, lifetimes)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return device_of(self.module)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the layers' names, kinds and weight shapes."""
        return fingerprint(layer.signature for layer in self.layers)

    @property
    def num_unquantized(self) -> int:
        """Parameters and statistics that are no weight of a layer: biases, norms, excluded layers.

        What a module computes from its configuration (not persistent) is not counted.
        """
        # By identity: a tied weight is one parameter, and a state dict lists it under each name.
        weights = {id(weight_of(self.layer_module(layer.name))) for layer in self.layers}
        stored = self.module.state_dict(keep_vars=True).values()
        others = {id(t): t for t in stored if isinstance(t, Tensor) and id(t) not in weights}
        return sum(t.numel() for t in others.values() if t.is_floating_point())

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

    def outputs(self, batch: Batch) -> Tensor:
        """``[N, P, C]`` for a batch that is on the network's device."""
        return self.metric.positions(self.module(*batch.args, **batch.kwargs))

    def batches(self, data: Calibration) -> Iterator[Batch]:
        """Batches on the network's device."""
        return (batch.to(self.device) for batch in data)


def find_layers(model: nn.Module, data: Any) -> tuple[Layer, ...]:
    """Every quantizable layer of a model, with shapes, MACs and calls per example.

    Args:
        model: The user's network, in evaluation mode; it stays as it is.
        data: See ``Calibration``; only the first batch is used.

    Raises:
        ModelError: See ``Network.of``.
    """
    return Network.of(model, data).layers


def _fold(module: nn.Module, folded: Mapping[str, str], batch: Batch, metric: OutputMetric) -> None:
    """Folds, and makes sure that the network still says the same."""
    with torch.no_grad():
        before = metric.positions(module(*batch.args, **batch.kwargs))
        fold_batch_norm(module, folded)
        after = metric.positions(module(*batch.args, **batch.kwargs))
    # The largest difference, as one broken channel would vanish in a mean.
    error = float((after - before).abs().max())
    # Rounding, unlike a wrong fold, is a multiple of the dtype's eps: 1e-3 is 8,000 of float32's,
    # and coarser types get 8 of their own.
    allowed = max(1e-3, 8 * torch.finfo(before.dtype).eps) * float(before.abs().max())
    if error > allowed:
        raise ModelError(
            f"folding BatchNorm changed the output by {error:.3g}; a layer does more than it "
            "seems to: search without folding (fold=False, --no-fold)"
        )


def _select(
    module: nn.Module, found: Trace, include: Sequence[Pattern], exclude: Sequence[Pattern]
) -> tuple[Layer, ...]:
    names = [*(layer.name for layer in found.layers), *found.refused]
    modules = {name: module.get_submodule(name) for name in names}
    # Excluding comes last, so that `--exclude` takes away from what `--include` gave.
    kept = set(modules if not include else ())
    for pattern in include:
        kept.update(matching(modules, pattern, "--include"))
    for pattern in exclude:
        kept.difference_update(matching(modules, pattern, "--exclude"))
    if not kept:
        where = f" ({len(found.uncalled)} are never called on this data)" if found.uncalled else ""
        raise ModelError(f"the model has no quantizable layer{where}, or all are excluded")
    # After excluding, which is the way out.
    refused = next((sentence for name, sentence in found.refused.items() if name in kept), None)
    if refused is not None:
        raise ModelError(refused)
    return with_owners(tuple(layer for layer in found.layers if layer.name in kept))
