"""A session of ONNX Runtime that keeps an assignment as it is."""

from typing import TYPE_CHECKING, Any, Final

from mpq.errors import MissingDependencyError, ModelError

if TYPE_CHECKING:
    import onnx

DISABLED: Final = "optimization.disable_specified_optimizers"
"""A session's setting."""
KEPT: Final = ("WeightBiasQuantization", "DoubleQDQPairsRemover")
"""What must be disabled for an assignment to be kept: ONNX Runtime makes an int8 layer of a float
one that stands between two int8 layers, with scales of its own, and merges two roundings."""
CHANNELS_LAST: Final = "NhwcTransformer"
"""What runs int8 convolutions channels last."""


def open_session(
    graph: "onnx.ModelProto", num_threads: int = 1, channels_last: bool = False
) -> Any:
    """An ``onnxruntime.InferenceSession`` on the processor.

    Raises:
        MissingDependencyError: If ``onnxruntime`` is not installed.
        ModelError: If it cannot load the graph.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "the runtime onnxruntime is not installed: pip install 'mpq[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    # Operators one after the other, so that `num_threads` is all the threads there are.
    options.inter_op_num_threads = 1
    # Errors only: warnings are printed from C++, past Python's streams.
    options.log_severity_level = 3
    layout = () if channels_last else (CHANNELS_LAST,)
    options.add_session_config_entry(DISABLED, ";".join((*KEPT, *layout)))
    # These exceptions have no public name and no common class but Exception.
    failures = onnxruntime.capi.onnxruntime_pybind11_state
    # The provider by name, as a build for GPUs has others first.
    try:
        return onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except (failures.Fail, failures.NotImplemented, failures.InvalidGraph) as error:
        raise ModelError(f"ONNX Runtime cannot load the graph: {error}") from error
