"""The layers of a network that become placeholders of its graph: what an export asks first."""

from collections.abc import Sequence

from torch import nn

from mpq.backends.onnx.fidelity import refuse_other_readers, refuse_own_forwards
from mpq.errors import MismatchError, ModelError, UnknownNameError
from mpq.network.examples import Calibration
from mpq.network.layer import OPERANDS
from mpq.network.metric import KL
from mpq.network.metrics import METRICS
from mpq.network.network import Network
from mpq.problem.assignment import Assignment
from mpq.quantization.precision import ORIGINAL


def exportable(
    model: nn.Module, assignment: Assignment, data: Calibration, with_own: bool = False
) -> Network:
    """The network whose assigned layers are written in their precisions.

    Only these become placeholders; all else stays as torch writes it.

    Args:
        model: The network that the assignment was found for.
        assignment: Its layers' precisions.
        data: Examples that reach every layer.
        with_own: Whether layers with a forward of their own have a place.

    Raises:
        MismatchError: If the assignment belongs to another network, or the examples to another
            task.
        ModelError: If a layer computes something of its own, which has no place.
    """
    network = _network(model, assignment, data)
    if dict(assignment.folded) != dict(network.folded):
        raise MismatchError(
            "the assignment belongs to another network: it does not fold the BatchNorms that this "
            "one has after its convolutions"
        )
    chosen = assignment.precisions.items()
    refuse_other_readers(network, [name for name, x in chosen if x != ORIGINAL])
    if with_own:
        return network
    refuse_own_forwards(network.layers, assignment.precisions)
    plain = [layer.name for layer in network.layers if not layer.has_own_forward]
    if not plain:
        raise ModelError("every layer has a forward of its own: there is nothing to export")
    if len(plain) < len(network.layers):
        # Those that stay as they are, are written as torch computes them.
        network = _found(model, assignment, data, plain)
    return network


def _found(
    model: nn.Module, assignment: Assignment, data: Calibration, names: Sequence[str]
) -> Network:
    """The layers of these names, with outputs and generators as the search had them."""
    known = assignment.metadata
    return Network.of(
        model,
        data,
        include=names,
        fold=bool(assignment.folded),
        metric=KL if known.metric is None else METRICS.build(known.metric),
        allow_randomness=known.allow_randomness,
        operands=any(layer.kind in OPERANDS for layer in assignment.layers),
    )


def _network(model: nn.Module, assignment: Assignment, data: Calibration) -> Network:
    names = [layer.name for layer in assignment.layers]
    try:
        return _found(model, assignment, data, names)
    except UnknownNameError as error:
        # The layer is there, as the simulation has found it.
        raise MismatchError(
            f"these examples do not reach every assigned layer: {error}; give those of the search"
        ) from error
