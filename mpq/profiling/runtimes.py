"""The runtimes by name."""

from mpq.profiling.onnx_runtime import OnnxRuntime
from mpq.profiling.openvino_runtime import OpenVino
from mpq.profiling.runtime import Runtime
from mpq.profiling.torchao_runtime import TorchAo
from mpq.registry import Registry

RUNTIMES: Registry[Runtime] = Registry("runtime", (OnnxRuntime, OpenVino, TorchAo))
"""Every runtime that ``mpq profile`` can measure."""
