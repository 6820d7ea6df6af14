"""ONNX Runtime on the processor."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np

from mpq._support.arrays import AnyArray
from mpq.backends.onnx import open_session
from mpq.errors import InputError
from mpq.hardware_profiles.profiling._base import Program
from mpq.hardware_profiles.profiling.onnx_base import GraphRuntime

if TYPE_CHECKING:
    import onnx


@final
@dataclass(frozen=True)
class OnnxRuntime(GraphRuntime):
    """Runs ONNX graphs with float32, int8 and packed weights.

    Args:
        num_threads: How many threads one run may use.
        channels_last: Whether int8 convolutions run channels last, with transpositions that ONNX
            Runtime moves through the whole graph: good for networks that are int8 throughout, but
            mixed ones then pay for layouts as no sum over layers and neighbours can say.
    """

    name: ClassVar[str] = "onnxruntime"
    summary: ClassVar[str] = "ONNX Runtime: float32, int8 (QDQ), 2, 4, 8-bit weights (MatMulNBits)"
    package: ClassVar[str] = "onnxruntime"
    # w7a8 beside w8a8: without VNNI, x86 saturates where two products of 8 bits are added.
    default_precisions: ClassVar[tuple[str, ...]] = (
        "fp32", "w7a8", "w8a8", "w2g32a8d", "w4g32a8d", "w8g32a8d",
    )  # fmt: skip
    num_threads: int = 1
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.num_threads < 1:
            raise InputError(f"onnxruntime needs num_threads >= 1; got {self.num_threads}")

    def compiled(self, graph: "onnx.ModelProto", examples: list[AnyArray]) -> Program:
        """See ``GraphRuntime``."""
        session = open_session(graph, self.num_threads, self.channels_last)
        names = [value.name for value in session.get_inputs()]
        # Made once: a timed run should do nothing but run.
        feeds = dict(zip(names, examples, strict=True))

        def outputs(*values: AnyArray) -> AnyArray:
            return np.asarray(session.run(None, dict(zip(names, values, strict=True)))[0])

        return Program(lambda: session.run(None, feeds), outputs)
