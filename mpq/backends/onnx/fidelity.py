"""Whether a graph computes what the network computes, before anything is rounded."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mpq.backends.onnx.instantiate import fill, placeholders_of
from mpq.backends.onnx.session import open_session, outputs_of
from mpq.backends.onnx.template import GraphTemplate, feeds_of
from mpq.errors import ModelError
from mpq.network.examples import Batch, Calibration
from mpq.network.layer import Layer
from mpq.network.modules import hooks
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer

if TYPE_CHECKING:
    import onnx

SAME: Final = 1e-5
"""How far the graph's output may be from the network's, relative to the largest number."""
NUM_BATCHES: Final = 8
"""Calibration batches on which the two are compared."""


def refuse_own_forwards(layers: Sequence[Layer], precisions: Mapping[str, Precision]) -> None:
    """Refuses layers that ONNX's operators would compute as torch's plain ones.

    Args:
        layers: The network's layers.
        precisions: What each is to be written in.

    Raises:
        ModelError: If a layer with a forward of its own is quantized; names all of them.
    """
    own = [x.name for x in layers if x.has_own_forward and precisions[x.name] != ORIGINAL]
    if own:
        raise ModelError(
            f"layers with a forward of their own cannot be exported quantized: {', '.join(own)}; "
            "leave them out of the search (--exclude), and they are written as torch computes them"
        )


def refuse_other_readers(network: Network, quantized: Collection[str]) -> None:
    """Refuses weights that functions read beside the layer's call: the graph has them as floats.

    Args:
        network: The network whose layers become placeholders.
        quantized: Names of layers that are not to stay as they came.

    Raises:
        ModelError: If such a weight is quantized, as of a head ``F.linear(h, embed.weight)``; names
            all of them.
    """
    tied = {
        name.rpartition(".")[0]
        for name, kind in ((x.name, x.kind) for x in network.layers if x.weight_of is not None)
        if name.endswith(f".{kind}")
    }
    read = {*tied, *network.reach.also_used}
    names = [x for x in quantized if x in read]
    if names:
        raise ModelError(
            f"weights that functions read beside the layer's own call cannot be exported "
            f"quantized: {', '.join(names)}; leave them out of the search (--exclude), and they "
            "are written as torch computes them"
        )


@final
@dataclass(frozen=True)
class Fidelity:
    """On how much the graph in fp32 was found to equal the network.

    Args:
        compared: Batches of which a run was compared.
        skipped: Batches that the graph does not take, as they have other shapes or too few
            examples.
    """

    compared: int
    skipped: int

    @property
    def verdict(self) -> str:
        """For people."""
        told = f"with every layer in fp32 it equals the network on {_batches(self.compared)}"
        if not self.skipped:
            return told
        return f"{told} (not tried on {self.skipped}, whose shapes the file does not take)"


def _batches(count: int) -> str:
    return f"{count} batch{'' if count == 1 else 'es'}"


def check_same(template: GraphTemplate, data: Calibration) -> Fidelity:
    """Makes sure that the graph with every layer as it is equals the network.

    Args:
        template: What was exported.
        data: Calibration examples; one run of each of the first batches is compared, as control
            flow that depends on numbers may have taken another branch on the example.

    Raises:
        ModelError: If it does not; says how far off it is, or why it cannot run.
    """
    run = _runner(_plain(template))
    compared, skipped = 0, 0
    for runs in _runs(template, data):
        for batch, feeds in runs:
            with torch.no_grad():
                output = template.network.module(*batch.args, **batch.kwargs)
            scored = template.outputs(output)
            for found, expected in zip(run(feeds), scored.values(), strict=True):
                if told := _difference(found, expected.double().cpu().numpy()):
                    raise ModelError(
                        f"{told}{_where(template, batch, feeds)}{_drawn(template.network)}, so "
                        "that no file was made"
                    )
        compared, skipped = compared + bool(runs), skipped + (not runs)
    return Fidelity(compared, skipped)


def _plain(template: GraphTemplate) -> "onnx.ModelProto":
    """The graph with every layer as it is."""
    precisions = {layer.name: ORIGINAL for layer in template.network.layers}
    return fill(template, precisions, Quantizer(ActivationRanges({})))


def _runs(
    template: GraphTemplate, data: Calibration
) -> Iterator[Sequence[tuple[Batch, Mapping[str, npt.NDArray[Any]]]]]:
    """Of each of the first batches, the runs that are compared; empty: the graph takes none."""
    size = template.example.size
    for index, batch in enumerate(islice(template.network.batches(data), NUM_BATCHES)):
        # Of the first batch the example is the beginning: its end says more.
        starts = [0] if index or batch.size < 2 * size else [0, batch.size - size]
        runs = [batch.slice(start, start + size) for start in starts if batch.size >= size]
        fed = [(run, feeds_of(list(template.feeds), run)) for run in runs if is_like(run, template)]
        yield fed


def is_like(batch: Batch, template: GraphTemplate) -> bool:
    """Whether the graph takes a batch, whose shapes are those of the example."""
    shapes = [tuple(x.shape) for x in batch.tensors]
    return shapes == [x.shape for x in template.feeds.values()]


def _difference(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> str:
    """How far the graph is off, for people; empty: it is not."""
    if found.shape != expected.shape:
        return f"the ONNX graph gives {found.shape}, the network {expected.shape}"
    error, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    # Written so that nan is refused, too.
    if error <= SAME * largest:
        return ""
    return (
        f"the ONNX graph with every layer in fp32 is {error:.3g} off the network, whose largest "
        f"output is {largest:.3g}: something is not written as it is computed"
    )


def _where(template: GraphTemplate, batch: Batch, feeds: Mapping[str, npt.NDArray[Any]]) -> str:
    """The first layer whose output differs, and those that the graph lacks, for people."""
    calls = placeholders_of(template.graph.graph)
    graph = _plain(template)
    del graph.graph.output[:]
    graph.graph.output.extend(_named(call.y) for call in calls)
    outputs = _runner(graph)(feeds)
    expected = {name: iter(seen) for name, seen in _layer_outputs(template.network, batch).items()}
    for call, found in zip(calls, outputs, strict=True):
        # Without one, the network took another branch than the graph.
        seen = next(expected[call.layer], None)
        if seen is None or _difference(found, seen.double().cpu().numpy()):
            return f", first at layer {call.layer!r}{_why(template.missed)}"
    return f", behind the layers{_why(template.missed)}"


def _named(y: str) -> "onnx.ValueInfoProto":
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(y, TensorProto.FLOAT, None)


def _layer_outputs(network: Network, batch: Batch) -> dict[str, list[Tensor]]:
    """What every call of every layer gives, in the order of the calls."""
    outputs: dict[str, list[Tensor]] = {layer.name: [] for layer in network.layers}

    def see(name: str, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        # A copy, as an operation in place may change the tensor afterwards.
        outputs[name].append(output.detach().clone())

    modules = ((name, network.layer_module(name)) for name in outputs)
    with (
        hooks([m.register_forward_hook(partial(see, name)) for name, m in modules]),
        torch.no_grad(),
    ):
        network.module(*batch.args, **batch.kwargs)
    return outputs


def _drawn(network: Network) -> str:
    if network.allow_randomness is None:
        return ""
    return (
        " (the network draws numbers, and a runtime draws others whatever the seed: export it with "
        "the drawn numbers as an input, or without drawing)"
    )


def _why(missed: Sequence[str]) -> str:
    return f" (the example does not reach {', '.join(missed)})" if missed else ""


def _runner(
    graph: "onnx.ModelProto",
) -> Callable[[Mapping[str, npt.NDArray[Any]]], list[npt.NDArray[Any]]]:
    """Runs the graph, which is loaded once; gives all its outputs."""
    outputs: Callable[[Mapping[str, Any]], Any]
    if find_spec("onnxruntime") is not None:
        outputs = partial(outputs_of, open_session(graph))
    else:
        from onnx.reference import ReferenceEvaluator

        outputs = partial(ReferenceEvaluator(graph).run, None)

    def run(feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        return [np.asarray(x, dtype=np.float64) for x in outputs(dict(feeds))]

    return run
