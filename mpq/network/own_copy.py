"""Our own copy of a model, written so that every weight is that of one called module."""

from torch import nn

from mpq.network.attention import open_attention, why_closed
from mpq.network.modules import share_parameters
from mpq.network.refusals import refused_modules
from mpq.network.tracing import kind_of
from mpq.network.weight_layout import RowLayout, layout_of


def own_copy(model: nn.Module) -> nn.Module:
    """Shares the model's parameters; attention's projections are layers of their own.

    A parameter that layers of different layouts share (a convolution and a transposed one) is one
    parameter of each: its scales lie along other axes, so that two tensors are stored.

    Args:
        model: In evaluation mode; left as found.

    Raises:
        ModelError: If the model cannot be copied.
    """
    module = open_attention(share_parameters(model))
    _part_layouts(module)
    return module


def closed_modules(module: nn.Module) -> dict[str, str]:
    """Parts of our own copy whose layers are out of reach, and a sentence why."""
    closed = {name: why_closed(each) for name, each in module.named_modules()}
    attention = {
        name: f"{name!r}: {why}, or leave it out: --exclude {name!r}"
        for name, why in closed.items()
        if why
    }
    return {**refused_modules(module), **attention}


def _part_layouts(module: nn.Module) -> None:
    owners: dict[tuple[int, RowLayout], nn.Parameter] = {}
    met: set[int] = set()
    for layer_module in module.modules():
        weight = None if kind_of(layer_module) is None else layer_module.weight
        if not isinstance(weight, nn.Parameter):
            continue
        key = (id(weight), layout_of(layer_module))
        if key not in owners:
            # Its own memory, as torch saves memory that is shared only once.
            is_first = id(weight) not in met
            owners[key] = weight if is_first else nn.Parameter(weight.detach().clone(), False)
        met.add(id(weight))
        layer_module.weight = owners[key]
