"""Which precisions have a kernel in ONNX graphs, and which one."""

from enum import Enum

from mpq.quantization.number_format import NumberFormat
from mpq.quantization.precision import Precision
from mpq.quantization.tensor_format import Granularity

LINEAR = "linear"
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
EMBEDDING = "embedding"
_GROUPED_BITS = (2, 4, 8)  # those of MatMulNBits that ONNX Runtime has kernels for
_MIN_GROUP = 16  # the least block_size that the operator's definition allows
_CODES = "INT8"  # the element type that weights are written in


class Kernel(Enum):
    """How a layer is written down in ONNX.

    ``QDQ``: integers of 8 bits between ``QuantizeLinear`` and ``DequantizeLinear``, which runtimes
    turn into integer kernels. ``NBITS``: ``com.microsoft.MatMulNBits``, packed weights of 2, 4 or
    8 bits with a scale per group; an int8 activation is rounded while running, group by group.
    ``LOOKUP``: an embedding's rows in 8 bits. ``FLOAT``: as it came.
    """

    FLOAT = "float"
    QDQ = "qdq"
    NBITS = "nbits"
    LOOKUP = "lookup"


def kernel_of(kind: str, precision: Precision) -> Kernel | None:
    """The kernel of a kind of layer at a precision; ``None`` where there is none.

    Weights of 2 to 8 bits with a scale per channel or tensor beside static int8 activations are
    stored in 8 bits and run as int8: fewer bits make them no faster and no smaller. Groups go with
    float activations (``a32``) or with dynamic int8 ones (``a8d``), for linear layers.

    >>> kernel_of("conv2d", Precision.parse("w8a8")), kernel_of("conv2d", Precision.parse("w4g32"))
    (<Kernel.QDQ: 'qdq'>, None)
    """
    weight, activation = precision.weight, precision.activation
    if weight.is_exact and activation.is_exact:
        return Kernel.FLOAT
    # Nodes have scales in fp32, and are written with zero points of 0: that is what symmetric is.
    if weight.scale not in (None, "fp32"):
        return None
    if not _is_stored_in_bytes(weight.number) or not weight.symmetric:
        return None
    if weight.granularity is Granularity.GROUP:
        # MatMulNBits is a product of matrices: there is no such convolution or look-up.
        return Kernel.NBITS if kind == LINEAR and _runs_in_groups(precision) else None
    # Whatever the activation: it reads ids, which no format changes.
    if kind == EMBEDDING:
        return Kernel.LOOKUP
    # QuantizeLinear takes one scale that is known beforehand, not one per token.
    is_static_int8 = activation.number.name == "int8" and activation.granularity is not (
        Granularity.TOKEN
    )
    return Kernel.QDQ if is_static_int8 and kind in (LINEAR, *CONVOLUTIONS) else None


def rounds_output(kind: str, precision: Precision) -> bool:
    """Whether the kernel leaves integers, so that its output is rounded to 8 bits too."""
    return kind in CONVOLUTIONS and kernel_of(kind, precision) is Kernel.QDQ


def _is_stored_in_bytes(number: NumberFormat) -> bool:
    # The second half is for formats of other packages, which may claim what does not fit.
    return number.onnx_type == _CODES and number.bits <= 8


def _runs_in_groups(precision: Precision) -> bool:
    size = precision.weight.group_size or 0
    # A power of two has a single bit, which the number below it lacks.
    is_power = size >= _MIN_GROUP and size & (size - 1) == 0
    activation = precision.activation
    # The operator rounds to int8 by itself while it runs; it takes no calibrated range.
    reads = activation.is_exact or (
        activation.number.name == "int8" and activation.granularity is Granularity.TOKEN
    )
    return is_power and reads and precision.weight.number.bits in _GROUPED_BITS
