"""Finding the layers in all batches of the data, as one batch need not reach every layer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, final

from torch import Tensor, nn

from mpq.network.behaviour import check_again
from mpq.network.dataflow import Dataflow, with_sources
from mpq.network.examples import Batch, Calibration
from mpq.network.layer import Layer
from mpq.network.liveness import Lifetimes
from mpq.network.metric import OutputMetric
from mpq.network.modules import device_of
from mpq.network.reach import Reach, Watch
from mpq.network.tracing import Trace, trace


@final
@dataclass(frozen=True, eq=False)
class Finding:
    """What the data showed of a module: traces of the batches that reach a layer first.

    Args:
        module: Our own copy of the model.
        batches: ``[T]`` the first batch, and every further one that reached a layer first, on the
            module's device.
        traces: ``[T]`` what each of them showed.
        reach: What all batches together reached.
    """

    module: nn.Module
    batches: tuple[Batch, ...]
    traces: tuple[Trace, ...]
    reach: Reach

    @classmethod
    def of(
        cls,
        module: nn.Module,
        data: Calibration,
        metric: OutputMetric,
        seed: int | None = None,
        known: tuple[Batch, Tensor] | None = None,
    ) -> Self:
        """Runs all batches twice; those that reach a layer first are traced as well, and kept.

        Args:
            module: Our own copy of the model.
            data: All examples.
            metric: Reads the outputs.
            seed: Where the generators start in every pass; ``None``: they are left alone.
            known: A batch, and what it answered before: it need not be run twice again.

        Raises:
            ModelError: If a batch gives another answer the second time.
        """
        device, watch = device_of(module), Watch(module)
        batches: list[Batch] = []
        traces: list[Trace] = []
        for index, given in enumerate(data):
            batch = given.to(device)
            is_first = bool(watch.run(batch))
            first = batch.as_examples(metric.positions(watch.returned))
            where = f"batch {index} of the calibration data"
            second = _answered(batch, first, known)
            check_again(module, batch, first, metric, seed, where, second)
            # Also where the first batch reaches nothing: its trace says so.
            if is_first or not batches:
                seen = trace(module, batch, metric)
                # Layers that were called without rows are found where they get some.
                reached = tuple(x for x in seen.layers if x.name in watch.known)
                traces.append(replace(seen, layers=reached))
                batches.append(batch)
        reach = watch.reach(lambda: (batch.to(device) for batch in data))
        return cls(module, tuple(batches), tuple(traces), reach)

    @property
    def refused(self) -> dict[str, str]:
        """Modules of a layer's kind that cannot be layers, and a sentence why."""
        return {name: why for found in self.traces for name, why in found.refused.items()}

    @property
    def foldable(self) -> dict[str, str]:
        """Convolution to the BatchNorm that alone reads its output, in every trace."""
        pairs = {c: norm for found in self.traces for c, norm in found.foldable.items()}
        norms = list(pairs.values())
        return {
            convolution: norm
            for convolution, norm in pairs.items()
            # Folding into one convolution would take the norm away from the other.
            if norms.count(norm) == 1 and all(_agrees(x, convolution, norm) for x in self.traces)
        }

    @property
    def layers(self) -> tuple[Layer, ...]:
        """In the order of their first call; each as in the first batch that reached it."""
        found: dict[str, Layer] = {}
        for each in self.traces:
            new = _with_known_readers(each.layers, found)
            found |= {layer.name: layer for layer in new}
        return self._with_owners(tuple(found.values()))

    def _with_owners(self, layers: Sequence[Layer]) -> tuple[Layer, ...]:
        """With ``weight_of`` also where the owner was reached in another batch."""
        first: dict[int, str] = {}
        owners = [
            first.setdefault(id(self.module.get_submodule(layer.name).weight), layer.name)
            for layer in layers
        ]
        return tuple(
            replace(layer, weight_of=owner if owner != layer.name else None)
            for layer, owner in zip(layers, owners, strict=True)
        )

    def with_dataflow(self, layers: Sequence[Layer]) -> tuple[tuple[Layer, ...], Lifetimes]:
        """The layers with what they feed, and the lifetimes of the first batch's tensors.

        After folding, so that a folded BatchNorm is no step and holds no memory.
        """
        flows = [
            Dataflow.of(self.module, batch, found.layers)
            for batch, found in zip(self.batches, self.traces, strict=True)
        ]
        fed_by = {n: feeding for flow in reversed(flows) for n, feeding in flow.fed_by.items()}
        # Of all layers, as a router that was left out chooses all the same.
        choosing = [x.name for found in self.traces for x in found.layers if x.is_choosing]
        before = _feeding(choosing, [flow.fed_by for flow in flows])
        layers = tuple(replace(x, is_before_choice=x.name in before) for x in layers)
        return with_sources(layers, replace(flows[0], fed_by=fed_by)), flows[0].lifetimes


def _feeding(names: Iterable[str], flows: Sequence[Mapping[str, Sequence[str]]]) -> set[str]:
    """The layers whose outputs reach these in any of the flows, through whatever layers."""
    found: set[str] = set()
    left = [*names]
    while left:
        name = left.pop()
        new = {n for fed_by in flows for n in fed_by.get(name, ())} - found
        found |= new
        left += new
    return found


def _agrees(found: Trace, convolution: str, norm: str) -> bool:
    is_called = any(layer.name == convolution for layer in found.layers)
    return not is_called or found.foldable.get(convolution) == norm


def _with_known_readers(layers: Sequence[Layer], known: dict[str, Layer]) -> list[Layer]:
    """The new ones among the layers; of one tensor's readers, a known one comes first."""
    first: dict[str, str] = {}
    for layer in layers:
        if layer.name in known:
            first.setdefault(layer.input_of or layer.name, layer.name)
    new = [layer for layer in layers if layer.name not in known]
    readers = [first.get(layer.input_of or layer.name, layer.input_of) for layer in new]
    return [replace(x, input_of=reader) for x, reader in zip(new, readers, strict=True)]


def _answered(batch: Batch, first: Tensor, known: tuple[Batch, Tensor] | None) -> Tensor | None:
    """What is known of the batch, if it is cut into examples as it was before."""
    if known is None or (known[0].start, known[0].size) != (batch.start, batch.size):
        return None
    return known[1] if known[1].shape == first.shape else None
