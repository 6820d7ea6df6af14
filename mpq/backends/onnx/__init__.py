"""Assignment -> an ONNX graph with real integer weights, for ONNX Runtime and OpenVINO."""

from mpq.backends.onnx.export import export_onnx
from mpq.backends.onnx.filling import fill, idle_graph
from mpq.backends.onnx.formats import Kernel, kernel_of, rounds_output
from mpq.backends.onnx.skeleton import Skeleton
from mpq.backends.onnx.stretch import Stretch

__all__ = [
    "Kernel",
    "Skeleton",
    "Stretch",
    "export_onnx",
    "fill",
    "idle_graph",
    "kernel_of",
    "rounds_output",
]
