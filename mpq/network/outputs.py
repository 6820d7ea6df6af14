"""What a network's output says: numbers for one example, or for each of its positions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mpq.errors import ModelError
from mpq.network.examples import Batch
from mpq.network.finite import is_finite
from mpq.network.output_paths import how_to_score

_NAMES = ("logits", "last_hidden_state", "prediction", "embeddings")
"""Where an output that is no tensor keeps it, the first that is there."""


def position_logits(output: Any) -> Tensor:
    """Logits ``[N, P, C]`` of ``N`` examples with ``P`` positions each.

    Args:
        output: A tensor, or something with ``logits`` (an attribute or a key): ``[N, C]``;
            ``[N, P, C]`` for sequences; ``[N, C, ...]`` with four or more axes for images.

    Raises:
        ModelError: If the output is none of these, has a single class, or is not finite.
    """
    # Hidden states have channels, too, but a softmax over them means nothing.
    logits = _tensor(output, _NAMES[:1], "a floating-point tensor nor has `logits`")
    if logits.ndim < 2 or logits.shape[1 if logits.ndim > 3 else -1] < 2:
        raise ModelError(
            f"the output is {tuple(logits.shape)}; expected logits [N, C], [N, P, C] or "
            "[N, C, H, W] with at least two classes (for a network that gives no probabilities: "
            "metric='squared-error' or 'cosine')"
        )
    return _by_position(logits)


def position_values(output: Any) -> Tensor:
    """Numbers ``[N, P, C]`` of a network that gives no probabilities.

    Args:
        output: As ``position_logits`` takes it, also ``[N]``, with a single channel, and in
            ``last_hidden_state``, ``prediction`` or ``embeddings``.

    Raises:
        ModelError: If the output is none of these, or is not finite.
    """
    values = scored_tensor(output)
    return _by_position(values.unsqueeze(-1) if values.ndim == 1 else values)


def scored_tensor(output: Any) -> Tensor:
    """The tensor of a network's output that metrics read, as it is.

    Raises:
        ModelError: If there is none.
    """
    return _tensor(output, _NAMES, f"a floating-point tensor nor has one of {', '.join(_NAMES)}")


def _by_position(values: Tensor) -> Tensor:
    if not is_finite(values):
        raise ModelError("the network's output has values that are NaN or infinite")
    # With three axes channels are last (sequences), with more they are second (images).
    if values.ndim > 3:
        values = values.flatten(2).transpose(1, 2)
    return values.unsqueeze(1) if values.ndim == 2 else values


def _tensor(output: Any, names: tuple[str, ...], wanted: str) -> Tensor:
    if isinstance(output, Tensor):
        candidates: list[Any] = [output]
    elif isinstance(output, Mapping):
        # A mapping first: Hugging Face's outputs are both, and a dict has no such attributes.
        candidates = [output.get(name) for name in names]
    else:
        candidates = [getattr(output, name, None) for name in names]
    found = next((value for value in candidates if isinstance(value, Tensor)), None)
    if found is None or found.ndim == 0 or not found.is_floating_point():
        advice = how_to_score(output) or "wrap it in a module that returns it"
        raise ModelError(
            f"the network returns a {type(output).__name__}, which is neither {wanted}; {advice}"
        )
    return found


def check_same_shape(original: Tensor, changed: Tensor) -> None:
    """Refuses to compare outputs ``[N, P, C]`` of which there are more or fewer than before.

    Raises:
        ModelError: If a quantized network answers the same input in another shape.
    """
    if original.shape != changed.shape:
        raise ModelError(
            f"quantized, the network's output for the same input is {tuple(changed.shape)} instead "
            f"of {tuple(original.shape)}; what it returns depends on its own numbers (detections "
            "above a score): compare an output from before that choice (--outputs), or wrap it in "
            "a module that returns one"
        )


def position_weights(batch: Batch, outputs: Tensor) -> Tensor:
    """What every position counts in the mean over an example, ``[N, P]``, rows adding up to 1.

    Positions that an ``attention_mask`` of the same shape hides count nothing.

    Args:
        batch: The inputs, with the attention mask if there is one.
        outputs: What the network returned for them, ``[N, P, C]``.
    """
    # The output of an encoder-decoder network has the decoder's positions.
    has_decoder = any(name.startswith("decoder_") for name in batch.kwargs)
    mask = batch.kwargs.get("decoder_attention_mask" if has_decoder else "attention_mask")
    if isinstance(mask, Tensor) and mask.shape == outputs.shape[:2]:
        weights = mask.to(outputs.device, torch.float64)
        # An example that is hidden as a whole weighs 0 instead of 0 / 0.
        return weights / weights.sum(dim=1, keepdim=True).clamp_min(1.0)
    positions = outputs.shape[1]
    return torch.full(outputs.shape[:2], 1 / positions, dtype=torch.float64, device=outputs.device)
