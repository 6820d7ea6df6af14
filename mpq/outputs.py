"""What a network's output says: one distribution per example, or one per position."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mpq.calibration import Batch
from mpq.errors import ModelError


def position_logits(output: Any) -> Tensor:
    """Logits ``[N, P, C]`` of ``N`` examples with ``P`` positions each.

    Args:
        output: A tensor, or something with ``logits`` (an attribute or a key): ``[N, C]``;
            ``[N, P, C]`` for sequences; ``[N, C, ...]`` with four or more axes for images.

    Raises:
        ModelError: If the output is none of these, has a single class, or is not finite.
    """
    logits = _logits(output)
    if logits.ndim < 2 or logits.shape[1 if logits.ndim > 3 else -1] < 2:
        raise ModelError(
            f"the output is {tuple(logits.shape)}; expected logits [N, C], [N, P, C] or "
            "[N, C, H, W] with at least two classes"
        )
    if not bool(logits.isfinite().all()):
        raise ModelError("the network's output has values that are NaN or infinite")
    if logits.ndim > 3:
        logits = logits.flatten(2).transpose(1, 2)
    return logits.unsqueeze(1) if logits.ndim == 2 else logits


def _logits(output: Any) -> Tensor:
    found = output.get("logits") if isinstance(output, Mapping) else output
    if not isinstance(found, Tensor):
        found = getattr(output, "logits", None)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise ModelError(
            f"the network returns a {type(output).__name__}, which is neither a floating-point "
            "tensor nor has `logits`; wrap it in a module that returns the logits"
        )
    return found


def position_weights(batch: Batch, logits: Tensor) -> Tensor:
    """What every position counts in the mean over an example, ``[N, P]``, rows adding up to 1.

    Positions that an ``attention_mask`` of the same shape hides count nothing.

    Args:
        batch: The inputs.
        logits: ``[N, P, C]``.
    """
    # The output of an encoder-decoder network has the decoder's positions.
    has_decoder = any(name.startswith("decoder_") for name in batch.kwargs)
    mask = batch.kwargs.get("decoder_attention_mask" if has_decoder else "attention_mask")
    if isinstance(mask, Tensor) and mask.shape == logits.shape[:2]:
        weights = mask.to(logits.device, torch.float64)
        return weights / weights.sum(dim=1, keepdim=True).clamp_min(1.0)
    positions = logits.shape[1]
    return torch.full(logits.shape[:2], 1 / positions, dtype=torch.float64, device=logits.device)
