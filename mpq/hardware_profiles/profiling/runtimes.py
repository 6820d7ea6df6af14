"""The runtimes by name."""

from mpq._support.registry import Registry
from mpq.hardware_profiles.profiling._base import Runtime
from mpq.hardware_profiles.profiling.onnx_runtime import OnnxRuntime
from mpq.hardware_profiles.profiling.openvino_runtime import OpenVino
from mpq.hardware_profiles.profiling.torchao_runtime import TorchAo

RUNTIMES: Registry[Runtime] = Registry(
    "runtime", (OnnxRuntime, OpenVino, TorchAo), group="mpq.runtimes"
)
"""Every runtime that ``mpq profile`` can measure."""
