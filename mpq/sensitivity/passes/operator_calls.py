"""What the rows of a layer's weight meet in a call, also where its forward is its own."""

from dataclasses import replace

from torch import Tensor

from mpq.network.inner_call import InnerCall
from mpq.network.modules import weight_of
from mpq.sensitivity.passes.backward_pass import Tap


def operator_call(tap: Tap, x: Tensor) -> tuple[Tap, Tensor] | None:
    """The call as one of torch's operator, for ``input_columns``; ``None`` if it is none.

    Args:
        tap: The call of a layer; one with a forward of its own is computed once more.
        x: What the layer reads.

    Returns:
        With a module that slides as the operator does, and what the operator reads.
    """
    layer = tap.layer
    if not layer.has_own_forward:
        return tap, x
    # Of an output that examples share there is one call, and a gradient for each of them.
    inner = None if tap.call is None or tap.is_shared else InnerCall.of(tap.call)
    if inner is None or getattr(inner.layer_module, "groups", 1) != layer.groups:
        return None
    # A convolution of one thing, without an axis of examples, is not brought into another form.
    if layer.kind.startswith("conv") and inner.read.ndim != weight_of(tap.layer_module).ndim:
        return None
    return replace(tap, layer_module=inner.layer_module), inner.read
