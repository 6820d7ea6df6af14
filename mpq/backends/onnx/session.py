"""A session of ONNX Runtime that keeps an assignment as it is."""

from collections.abc import Mapping
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


AS_WRITTEN: Final = {
    "session.qdq_matmulnbits_accuracy_level": "1",
    DISABLED: ";".join(KEPT),
}
"""Settings under which standard operators are computed as they are written: without the first one,
inputs of layers with 2, 4 and 8-bit weights are rounded to int8."""
FLOAT_PRODUCTS: Final = {"session.disable_quant_qdq": "1"}
"""What keeps int8 products from saturating on x86 processors without VNNI: there are none."""


def open_session(
    graph: "onnx.ModelProto", num_threads: int = 1, channels_last: bool = False
) -> Any:
    """An ``onnxruntime.InferenceSession`` that keeps an assignment as it is.

    Raises:
        MissingDependencyError: If ``onnxruntime`` is not installed.
        ModelError: If it cannot load the graph.
    """
    layout = () if channels_last else (CHANNELS_LAST,)
    return session_of(
        graph.SerializeToString(), {DISABLED: ";".join((*KEPT, *layout))}, num_threads
    )


def session_of(
    graph: bytes | str, settings: Mapping[str, str], num_threads: int = 1, **options: Any
) -> Any:
    """An ``onnxruntime.InferenceSession`` on the processor.

    Args:
        graph: A file's bytes, or its path.
        settings: A session's settings by their names.
        num_threads: For one run.
        options: Fields of ``SessionOptions``.

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
    found = onnxruntime.SessionOptions()
    found.intra_op_num_threads = num_threads
    # Operators one after the other, so that `num_threads` is all the threads there are.
    found.inter_op_num_threads = 1
    # Nothing: errors are raised as well, and C++ prints past Python's streams.
    found.log_severity_level = 4
    for name, value in settings.items():
        found.add_session_config_entry(name, value)
    for name, value in options.items():
        setattr(found, name, value)
    # The provider by name, as a build for GPUs has others first.
    try:
        return onnxruntime.InferenceSession(graph, found, providers=["CPUExecutionProvider"])
    except _failures() as error:
        raise ModelError(f"ONNX Runtime cannot load the graph: {error}") from error


def outputs_of(session: Any, feeds: Mapping[str, Any]) -> list[Any]:
    """All outputs of a session.

    Raises:
        ModelError: If the graph fails on the way, as where shapes do not fit each other.
    """
    try:
        found: list[Any] = session.run(None, dict(feeds))
    except _failures() as error:
        raise ModelError(f"ONNX Runtime cannot run the graph: {error}") from error
    return found


def _failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: classes with no public name, and none in common but Exception."""
    import onnxruntime

    known = onnxruntime.capi.onnxruntime_pybind11_state
    names = ("Fail", "NotImplemented", "InvalidGraph", "InvalidArgument", "RuntimeException")
    return tuple(getattr(known, name) for name in names)
