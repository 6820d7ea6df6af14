"""BatchNorm folded into convolutions, and the network asked whether it still says the same."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mpq.errors import ModelError
from mpq.network.batch_norm import changed_output, fold_batch_norm
from mpq.network.examples import Batch
from mpq.network.metric import OutputMetric


def fold(
    module: nn.Module, folded: Mapping[str, str], batches: Sequence[Batch], metric: OutputMetric
) -> None:
    """Folds, in place.

    Args:
        module: Our own copy.
        folded: Convolution to the BatchNorm behind it.
        batches: Examples to ask with.
        metric: Says which of the outputs are looked at.

    Raises:
        ModelError: If the network says something else.
    """
    with torch.no_grad():
        before = [metric.positions(module(*batch.args, **batch.kwargs)) for batch in batches]
        fold_batch_norm(module, folded)
        after = [metric.positions(module(*batch.args, **batch.kwargs)) for batch in batches]
    for was, now in zip(before, after, strict=True):
        _check(was, now)


def _check(before: Tensor, after: Tensor) -> None:
    error = changed_output(before, after)
    if error:
        raise ModelError(
            f"folding BatchNorm changed the output by {error:.3g}; a layer does more than it "
            "seems to: search without folding (fold=False, --no-fold)"
        )
