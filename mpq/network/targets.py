"""Targets of a batch: classes, one for every position of the output."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mpq.errors import DataError
from mpq.network.examples import IGNORED_TARGET, Batch
from mpq.network.outputs import position_weights


def class_targets(batch: Batch, outputs: Tensor, asked_by: str) -> Tensor:
    """Class of every position.

    Args:
        batch: Inputs with targets, ``[N]`` or one per position.
        outputs: Logits of the network for that batch, ``[N, P, C]``.
        asked_by: What needs targets, and what does not: ``labels=targets, unlike labels=sampled,``.

    Returns:
        ``[N, P]`` int64 on the outputs' device, ``IGNORED_TARGET`` where a position
        is not counted, or hidden by the attention mask.

    Raises:
        DataError: If there are none, or none that fit.
    """
    if batch.targets is None:
        raise DataError(f"{asked_by} needs targets, and the data has none: yield (inputs, targets)")
    # [N] for one position, [N, H, W] for images: the outputs have one axis of positions.
    targets, num_classes = batch.targets.reshape(batch.size, -1), outputs.shape[2]
    if targets.is_floating_point() or targets.shape != outputs.shape[:2]:
        raise DataError(
            f"targets must be class indices {tuple(outputs.shape[:2])}, one per position; got "
            f"{tuple(batch.targets.shape)} {batch.targets.dtype}"
        )
    # Here, as a class out of range is a device-side assertion on a GPU, without its number.
    counted = targets[targets != IGNORED_TARGET]
    wrong = counted[(counted < 0) | (counted >= num_classes)]
    if len(wrong):
        raise DataError(
            f"target {int(wrong[0])}, but the network has {num_classes} classes, 0 to "
            f"{num_classes - 1}; {IGNORED_TARGET} is not counted"
        )
    hidden = position_weights(batch, outputs) == 0  # padding
    return targets.to(outputs.device, torch.int64).masked_fill(hidden, IGNORED_TARGET)


def target_weights(targets: Tensor) -> Tensor:
    """``[N, P]`` float64: share of every position in the mean over its example's targets."""
    counted = (targets != IGNORED_TARGET).double()
    return counted / counted.sum(dim=1, keepdim=True).clamp_min(1)


def cross_entropy(targets: Tensor, logits: Tensor) -> Tensor:
    """``[N, P]`` in nats, float64; 0 where there is no target."""
    losses = F.cross_entropy(
        logits.flatten(0, 1).double(), targets.flatten(), reduction="none",
        ignore_index=IGNORED_TARGET,
    )  # fmt: skip
    return losses.view_as(targets)
