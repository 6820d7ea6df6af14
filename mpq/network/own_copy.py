"""Our own copy of a model, written so that every weight is that of one called module."""

from typing import Any

from torch import nn

from mpq.network.modules import share_parameters
from mpq.network.opening import open_layers
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
    module = open_layers(share_parameters(model))
    _run_experts_by_hand(module)
    _part_layouts(module)
    return module


def _run_experts_by_hand(module: nn.Module) -> None:
    """Makes transformers' experts loop over matrices, where a fused kernel would be chosen."""
    for part in module.modules():
        config: Any = vars(part).get("config")
        # Ours: `deepcopy` has copied it with the module.
        if getattr(config, "_experts_implementation", None) is not None:
            config._experts_implementation = "eager"


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
