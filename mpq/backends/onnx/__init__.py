"""Assignment -> an ONNX graph with real integer weights, for ONNX Runtime and OpenVINO."""

from mpq.backends.onnx.formats import Kernel, kernel_of, rounds_output
from mpq.backends.onnx.instantiate import fill, idle_graph
from mpq.backends.onnx.session import open_session
from mpq.backends.onnx.subgraph import Subgraph
from mpq.backends.onnx.template import GraphTemplate, check_batch_size, require_onnx

__all__ = [
    "GraphTemplate",
    "Kernel",
    "Subgraph",
    "check_batch_size",
    "fill",
    "idle_graph",
    "kernel_of",
    "open_session",
    "require_onnx",
    "rounds_output",
]
