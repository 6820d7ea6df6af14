"""Which candidates a layer's weight has room for: a product of low rank is no larger than it."""

from collections.abc import Mapping, Sequence

from mpq.errors import PrecisionError
from mpq.network.layer import Layer
from mpq.quantization.precision import Precision
from mpq.quantization.side_branch import why_no_branch


def with_room(
    layers: Sequence[Layer],
    candidates: tuple[Precision, ...],
    allowed: Mapping[str, tuple[Precision, ...]],
    fixed: Mapping[str, Precision],
) -> dict[str, tuple[Precision, ...]]:
    """Layer name to its own candidates, also of layers that some of the common ones do not fit.

    Args:
        layers: The network's.
        candidates: Those of layers that have none of their own.
        allowed: Layer name to its own, as they were asked for.
        fixed: Layer name to the precision that it must have.

    Raises:
        PrecisionError: If a fixed precision does not fit, or no candidate of a layer does.
    """
    found = dict(allowed)
    for layer in layers:
        wanted = found.get(layer.name, candidates)
        asked = (fixed[layer.name],) if layer.name in fixed else wanted
        whys = [
            why_no_branch(p.weight.branch, layer.num_weights, layer.num_channels) for p in asked
        ]
        if whys and all(whys):
            raise PrecisionError(
                f"layer {layer.name!r} at {asked[0]}: {whys[0]}; give it other candidates (--allow)"
            )
        if any(whys):
            found[layer.name] = tuple(p for p, why in zip(asked, whys, strict=True) if not why)
    return found
