"""Every layer of a file by itself: whether it makes of what it reads what the simulation would."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from mpq.backends.input_grid import input_grid_of
from mpq.backends.layerwise import INPUT, OUTPUT, difference, in_shape, layer_of, traced
from mpq.backends.onnx.formats import Kernel, kernel_of
from mpq.backends.onnx.graph import InputCodes
from mpq.backends.onnx.layer_tensors import as_traced
from mpq.backends.onnx.loaded import with_layers, written_calls
from mpq.backends.onnx.session import outputs_of, session_of
from mpq.backends.simulate import quantizer_of
from mpq.errors import ModelError
from mpq.network.batch import Batch
from mpq.network.modules import weight_of
from mpq.network.network import Network
from mpq.problem.assignment import Assignment

if TYPE_CHECKING:
    import onnx

SAME: Final = 1e-4
"""Accepted difference of what a layer gives, in its standard deviations: as of targets."""


@torch.no_grad()
def check_layers(
    graph: "onnx.ModelProto",
    network: Network,
    assignment: Assignment,
    simulated: nn.Module,
    batch: Batch,
    feeds: Mapping[str, Any],
) -> None:
    """Refuses a file one of whose layers computes something else than the simulation's.

    Products are those of floats here, without any rounding while running, and a layer is given the
    rounded input that it reads in the file: what is left is its weight, its bias and how they are
    written, to the last digits of sums, whatever this machine's kernels make of them.

    Args:
        graph: With ``CALLS`` in its metadata.
        network: What it is made of.
        assignment: What it is written in.
        simulated: The network in the assigned precisions.
        batch: One run's examples.
        feeds: The same, by the names of the graph's inputs.

    Raises:
        ModelError: Names the first layer that does, and says how far it is off.
    """
    found, steps = _tensors(graph, feeds), _bias_steps(network, assignment)
    given = traced(simulated, lambda: simulated(*batch.args, **batch.kwargs))
    # In the order of the calls.
    for key in given:
        call = key.removeprefix(OUTPUT)
        name, made, read = layer_of(call), found.get(key), found.get(INPUT + call)
        if call == key or made is None:
            continue
        part = simulated.get_submodule(name)
        if not isinstance(getattr(part, "weight", None), Tensor):
            continue  # what operations between layers read, which is not rounded here
        if read is None:
            # Of an embedding, which reads ids, what it gives is compared.
            expected = _nearest(made, _outputs(given, name))
        else:
            # Without its hooks, which would round once more what is rounded.
            expected = part.forward(read.to(weight_of(part))).float().cpu()
        made = in_shape(made, expected)
        if _is_apart(expected, made, weight_of(part).ndim, steps.get(name)):
            raise ModelError(
                f"onnx: layer {name!r} computes in the file something else than in the simulation: "
                f"of the numbers that it reads there, it makes others by "
                f"{difference(expected, made)} (standard deviation {float(expected.std()):.3g}); "
                "nothing was written"
            )


def _outputs(given: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """What every call of a layer gives."""
    names = ((key, key.removeprefix(OUTPUT)) for key in given)
    return [given[key] for key, call in names if call != key and layer_of(call) == name]


def _nearest(made: Tensor, outputs: list[Tensor]) -> Tensor:
    """The output that is nearest to one of the file.

    The file's calls are fewer where the exporter has joined those that read the same, so that their
    numbers do not tell which is which.
    """

    def distance(output: Tensor) -> float:
        found = in_shape(made, output)
        return float((output - found).abs().sum()) if found.shape == output.shape else float("inf")

    return min(outputs, key=distance)


def _is_apart(expected: Tensor, made: Tensor, weight_rank: int, step: Tensor | None) -> bool:
    """Whether outputs differ by more than last digits and half a step of their channel's bias."""
    if expected.shape != made.shape:
        return True
    accepted = torch.full_like(expected, SAME * (float(expected.std()) if made.numel() > 1 else 0))
    if step is not None:
        channels = [1] * (weight_rank - 2)  # kernels have as many axes as images have behind them
        accepted += step.reshape(-1, *channels) / 2
    accepted += SAME * expected.abs()
    # A comparison with nan is false.
    return not bool(((expected - made).abs() <= accepted).all())


def _bias_steps(network: Network, assignment: Assignment) -> dict[str, Tensor]:
    """``[O]`` in which a layer's bias is stored, by name: integers have those of their products."""
    quantizer, found = quantizer_of(assignment), dict[str, Tensor]()
    for layer in assignment.layers:
        if kernel_of(layer.kind, layer.precision) is not Kernel.QDQ:
            continue
        layer_module = network.layer_module(layer.name)
        read = input_grid_of(quantizer, layer.name, layer.precision.activation)
        codes = quantizer.codes(layer.name, layer_module, layer.precision.weight)
        found[layer.name] = codes.scale[:, 0].abs() * InputCodes.of(read).scale
    return found


def _tensors(graph: "onnx.ModelProto", feeds: Mapping[str, Any]) -> dict[str, Tensor]:
    """What layers read and give in the file, under the names of ``traced``."""
    import onnxruntime

    copy = with_layers(graph)
    for node in copy.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1  # inputs as they come
    # As written, and nothing fused: ONNX Runtime moves roundings past what it looks at, and makes
    # integer kernels of the pairs, which saturate on some processors.
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = session_of(copy.SerializeToString(), {}, graph_optimization_level=level)
    ends = [value.name for value in session.get_outputs()]
    tensors = dict(feeds) | dict(zip(ends, outputs_of(session, feeds), strict=True))
    known = {name: torch.as_tensor(x) for name, x in tensors.items()}
    return as_traced(written_calls(copy), known)
