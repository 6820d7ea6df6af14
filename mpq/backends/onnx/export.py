"""An assignment as an ONNX file that runtimes execute in its number formats."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mpq.backends._base import Backend, Exported
from mpq.backends.onnx.exportable import exportable
from mpq.backends.onnx.fidelity import (
    Fidelity,
    check_same,
    is_like,
)
from mpq.backends.onnx.formats import Kernel, kernel_of
from mpq.backends.onnx.instantiate import fill
from mpq.backends.onnx.layer_check import check_layers
from mpq.backends.onnx.session import open_session, outputs_of
from mpq.backends.onnx.template import (
    NUM_SAMPLES,
    GraphTemplate,
    check_batch_size,
    feeds_of,
    require_onnx,
)
from mpq.backends.simulate import Simulate, quantizer_of
from mpq.errors import InputError
from mpq.network.examples import Calibration
from mpq.network.named_outputs import scored_tensors
from mpq.network.same_start import begin_alike
from mpq.problem.assignment import Assignment

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
TOLERANCE = 0.5
"""A deviation that is warned of: files of our tests are at most 0.2 off (``test_calls.py``)."""


@final
@dataclass(frozen=True)
class Onnx(Backend):
    """The network with every layer in its assigned precision, tried here beside the simulation.

    A file is refused where a layer by itself, on what it reads in the file and with products of
    floats, makes other numbers than the simulation (``check_layers``). What is left are inputs that
    fall to the other side of a tie, outputs that convolutions round, and what kernels round while
    running: how far outputs are apart by that depends on the network and the processor, so that
    they are told, and warned of, and not refused.

    Layers of ``w2a8`` to ``w8a8`` become int8 between ``QuantizeLinear`` and ``DequantizeLinear``;
    linear layers of ``w2g128a8d``, ``w4g128a32`` and the like become ``MatMulNBits``; ``fp32``
    stays. Shapes are fixed to those of the calibration examples and the batch size. The output is
    the tensor that mpq compares, called ``output``; where it compares several, each is there under
    its path.

    Two things to know where it is deployed. ONNX Runtime makes int8 layers of float ones between
    int8 ones unless a session's setting says otherwise: see ``open_session``. And its int8 products
    saturate at 8-bit weights on x86 processors without VNNI: the deviation from the simulation
    shows that where it happens on this one; assign ``w7a8`` for such processors.

    Args:
        batch_size: Examples of one run; shapes are fixed.
    """

    name: ClassVar[str] = "onnx"
    summary: ClassVar[str] = "ONNX for ONNX Runtime and OpenVINO: QDQ int8, 2, 4 and 8-bit weights"

    batch_size: int = 1

    def export(self, assignment: Assignment, model: nn.Module | None, calibration: Any) -> Exported:
        """See ``Backend.export``; the graph is run here beside the simulation."""
        # The file holds weights, and the exporter traces the network on an example.
        if model is None or calibration is None:
            raise InputError("the backend onnx needs the network and calibration examples")
        graph, same, deviation = _graph(model, assignment, calibration, self.batch_size)
        verdict = f"{_verdict(deviation, assignment)}; {same.verdict}"
        return Exported(graph.SerializeToString(), verdict, deviation)


def _verdict(deviation: float | None, assignment: Assignment) -> str:
    """The deviation, and what is likely to be wrong if it is large, for people."""
    if deviation is None:
        return "ONNX Runtime here: not tried, as it is not installed, or no example has the shapes"
    told = (
        f"ONNX Runtime here: outputs at most {deviation:.2g} standard deviations apart from the "
        "simulation, every layer by itself as simulated"
    )
    if deviation <= TOLERANCE:
        return told
    # Only products of 8-bit weights and int8 activations can leave the 16 bits of their sums.
    saturating = [
        layer.name
        for layer in assignment.layers
        if layer.precision.weight.number.bits == 8
        and kernel_of(layer.kind, layer.precision) is Kernel.QDQ
    ]
    likely = "numbers that are rounded while running, and outputs of convolutions, add up"
    if saturating:
        likely = (
            "int8 products saturate at 8-bit weights on x86 processors without VNNI, where w7a8 is "
            "the format to take"
        )
    return f"warning: {told}. That is much ({likely}): try the file on your data before it is used"


def _graph(
    model: nn.Module, assignment: Assignment, calibration: Any, batch_size: int
) -> "tuple[onnx.ModelProto, Fidelity, float | None]":
    """The graph, where it equals the network in fp32, and how far it is from the simulation."""
    require_onnx()
    check_batch_size(batch_size)
    data = Calibration.of(calibration)
    # Before the export, as it is quick to refuse the assignment of another network.
    simulated = Simulate().quantize(model, assignment)
    network = exportable(model, assignment, data)
    data = network.examples(data)
    template = GraphTemplate.of(network, data, batch_size)
    same = check_same(template, data)
    filled = fill(template, assignment.precisions, quantizer_of(assignment))
    deviation = _deviation(filled, template, assignment, simulated, data, batch_size)
    return filled, same, deviation


def _deviation(
    graph: "onnx.ModelProto",
    template: GraphTemplate,
    assignment: Assignment,
    simulated: nn.Module,
    data: Calibration,
    batch_size: int,
) -> float | None:
    # A file is made for another machine: a runtime here is welcome and not needed.
    if find_spec("onnxruntime") is None:
        return None
    session, network = open_session(graph), template.network
    begin_alike(simulated, network.allow_randomness)
    first = data.first().to(network.device)
    found: list[list[Array]] = []
    expected: list[list[Array]] = []
    # At least one full run, however large the batch size is.
    few = min(first.size, max(NUM_SAMPLES, batch_size))
    # Full batches only, as the graph's shapes are fixed.
    for start in range(0, few // batch_size * batch_size, batch_size):
        batch = first.slice(start, start + batch_size)
        if not is_like(batch, template):
            continue  # images of another size, which the file does not take
        feeds = feeds_of(list(template.feeds), batch)
        if not found:
            check_layers(graph, network, assignment, simulated, batch, feeds)
        found.append(outputs_of(session, feeds))
        with torch.no_grad():
            output = simulated(*batch.args, **batch.kwargs)
        scored = scored_tensors(output, network.metric).values()
        expected.append([tensor.cpu().numpy() for tensor in scored])
    if not found:
        return None
    # By output, as every one has a unit of its own.
    pairs = zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True)
    return max(_apart(np.concatenate(x), np.concatenate(y)) for x, y in pairs)


def _apart(found: Array, expected: Array) -> float:
    """The largest difference, in standard deviations of what is expected."""
    # In float64, so that the difference of close outputs keeps its digits.
    difference = found.astype(np.float64) - expected
    # Over the spread, as outputs have units of their own; a constant output has none.
    return float(np.abs(difference).max()) / (float(np.std(expected)) or 1.0)
