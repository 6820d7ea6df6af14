"""An assignment as an ONNX file that runtimes execute in its number formats."""

from pathlib import Path
from typing import Any

from torch import nn

from mpq.assignment import Assignment
from mpq.attention import open_attention
from mpq.backends.fake_quant import check_assignment
from mpq.backends.onnx.filling import fill
from mpq.backends.onnx.skeleton import Skeleton, require_onnx
from mpq.calibration import Calibration
from mpq.model import Network, check_model, share_parameters
from mpq.output import write_files
from mpq.quantization import ActivationRanges, Quantizer


def export_onnx(
    model: nn.Module, assignment: Assignment, calibration: Any, path: Path, batch_size: int = 1
) -> Path:
    """Writes the network with every layer in its assigned precision.

    Layers of ``w2a8`` to ``w8a8`` become int8 between ``QuantizeLinear`` and ``DequantizeLinear``;
    linear layers of ``w2g128a8d``, ``w4g128a32`` and the like become ``MatMulNBits``; ``fp32``
    stays. Shapes are fixed to those of the calibration examples and the batch size.

    Args:
        model: The network that the assignment was found for, in evaluation mode.
        assignment: With the calibrated ranges of static activation formats.
        calibration: As for ``search``: example inputs, and the ranges of int8 outputs.
        path: The file.
        batch_size: Examples of one run.

    Raises:
        MissingDependencyError: If ``mpq[onnx]`` is not installed.
        MismatchError: If the assignment belongs to another network.
        PrecisionError: If a layer's precision has no kernel.
        ModelError: If torch cannot export the network; says which operator.
        OutputError: If the file cannot be written.
    """
    require_onnx()
    data = Calibration.of(calibration)
    names = [layer.name for layer in assignment.layers]
    check_model(model)
    check_assignment(open_attention(share_parameters(model)), assignment)
    network = Network.of(model, data, include=names, fold=bool(assignment.folded))
    ranges = ActivationRanges(
        {
            (layer.name, layer.precision.activation): layer.activation_range
            for layer in assignment.layers
            if layer.activation_range is not None
        }
    )
    quantizer = Quantizer(ranges, assignment.weight_range)
    filled = fill(Skeleton.of(network, data, batch_size), assignment.precisions, quantizer)
    (file,) = write_files(path.parent, {path.name: filled.SerializeToString()})
    return file
