"""Whether a network computes the same once its computed weights are layers."""

from collections.abc import Iterable, Mapping
from typing import Final

import torch
from torch import nn

from mpq.errors import ModelError
from mpq.network.batch_norm import changed_output
from mpq.network.computed_uses import ComputedUse, Name
from mpq.network.dataflow import SHAPE_FAILURES
from mpq.network.examples import Batch
from mpq.network.metric import OutputMetric
from mpq.network.modules import hooks, share_parameters, weight_of
from mpq.network.open_weights import open_computed, open_weights, opened_parts
from mpq.network.weight_use import Use

_WHY: Final = "computed into a weight, and reached otherwise than by its name (`parameters()`)"


def opening_changes(
    module: nn.Module,
    batch: Batch,
    metric: OutputMetric,
    uses: Mapping[Name, Use],
    computed: Iterable[ComputedUse],
) -> str:
    """What keeps computed weights from being layers, found on a copy; empty: nothing.

    What they are computed from is no parameter of the copy any more: a forward that lists its
    parameters would get others.

    Args:
        module: Our own copy of the model; left as it is.
        batch: On its device.
        metric: Says which of the outputs are looked at.
        uses: Weights that are opened beside them.
        computed: The weights.
    """
    opened = share_parameters(module)
    open_weights(opened, uses)
    open_computed(opened, computed)
    layers = [part for part in opened_parts(opened) if vars(part).get("computed")]
    called: set[nn.Module] = set()
    handles = [part.register_forward_pre_hook(lambda part, _: called.add(part)) for part in layers]
    with torch.no_grad(), hooks(handles):
        before = metric.positions(module(*batch.args, **batch.kwargs))
        try:
            after = metric.positions(opened(*batch.args, **batch.kwargs))
            # A list of parameters may have the layer's in it, which then is read without a call.
            for part in set(layers) - called:
                weight = weight_of(part)
                part.weight = nn.Parameter(torch.full_like(weight, torch.nan), requires_grad=False)
            again = metric.positions(opened(*batch.args, **batch.kwargs))
        # Whatever a forward may say of parameters that are none.
        except (ModelError, AttributeError, KeyError, TypeError, *SHAPE_FAILURES):
            return _WHY
    is_same = after.shape == before.shape and not changed_output(before, after)
    return "" if is_same and torch.equal(after, again) else _WHY
