"""OpenVINO on the processor."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from mpq._support.arrays import AnyArray
from mpq.errors import InputError, MissingDependencyError, ModelError
from mpq.hardware_profiles.profiling._base import Program
from mpq.hardware_profiles.profiling.onnx_base import GraphRuntime

if TYPE_CHECKING:
    import onnx


@final
@dataclass(frozen=True)
class OpenVino(GraphRuntime):
    """Runs the same ONNX graphs; rounds activations of packed weights while running.

    Args:
        num_threads: How many threads one run may use.
        inference_precision: What float layers compute in: ``f32``, or ``bf16`` for the whole
            network, which is faster only where the processor has it.
    """

    name: ClassVar[str] = "openvino"
    summary: ClassVar[str] = "OpenVINO: float32 or bf16, int8 (QDQ), 2, 4, 8-bit weights"
    package: ClassVar[str] = "openvino"
    default_precisions: ClassVar[tuple[str, ...]] = (
        "fp32", "w7a8", "w8a8", "w4g32a8d", "w8g32a8d",
    )  # fmt: skip
    num_threads: int = 1
    inference_precision: str = "f32"

    def __post_init__(self) -> None:
        if self.num_threads < 1 or self.inference_precision not in ("f32", "bf16"):
            raise InputError(
                "openvino needs num_threads >= 1 and inference_precision f32 or bf16; got "
                f"{self.num_threads} and {self.inference_precision!r}"
            )

    def compiled(self, graph: "onnx.ModelProto", examples: list[AnyArray]) -> Program:
        """See ``GraphRuntime``."""
        try:
            import openvino
        except ImportError as error:
            raise MissingDependencyError(
                "the runtime openvino is not installed: pip install 'mpq[openvino]'"
            ) from error
        # One stream with all threads: for throughput, threads are split among several requests.
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": self.num_threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.inference_precision,
        }
        core = openvino.Core()
        try:
            read = core.read_model(graph.SerializeToString())
            request = core.compile_model(read, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot load the graph: {error}") from error

        def feed(values: tuple[AnyArray, ...] | list[AnyArray]) -> None:
            for index, value in enumerate(values):
                request.set_input_tensor(index, openvino.Tensor(np.ascontiguousarray(value)))

        def outputs(*values: AnyArray) -> AnyArray:
            feed(values)
            request.infer()
            # A copy: `data` is a view of memory that the next run overwrites.
            found = np.array(request.get_output_tensor(0).data)
            feed(examples)  # which is what is timed
            return found

        # Outside of what is timed: the inputs stay in the request from run to run.
        feed(examples)
        return Program(request.infer, outputs)
