"""What is taken for granted of a network: the same answer twice, and one row an example."""

from typing import Final

import torch
from torch import Tensor, nn

from mpq.errors import ModelError
from mpq.network.divergence import LOGITS_AT_ONCE
from mpq.network.examples import Batch
from mpq.network.metric import OutputMetric
from mpq.network.named_outputs import unscored
from mpq.network.randomness import random_state
from mpq.network.same_start import begin_alike

_SAME: Final = 1e-4
"""How far two answers may be apart, relative to the largest output: kernels of another shape, and
sums in another order, differ by 1e-6 in float32; a dropped unit by far more than this."""


def check_repeatable(
    module: nn.Module, batch: Batch, metric: OutputMetric, seed: int | None = None
) -> tuple[Tensor, int, tuple[str, ...]]:
    """Runs a batch twice.

    Returns the outputs ``[N, P, C]``, how many rows they had as the network returned them, and
    paths of what is not scored.

    Args:
        module: Our own copy of the model; if it is refused, its generators are fixed afterwards.
        batch: On the module's device.
        metric: Reads the outputs.
        seed: Where the generators start in every pass, if they are fixed (``begin_alike``).

    Raises:
        ModelError: If the second answer is another one: by how much, and whether a seed helps.
    """
    first = answers(module, batch, metric)
    with torch.no_grad():
        returned = module(*batch.args, **batch.kwargs)
        rows = metric.positions(returned)
        second = batch.as_examples(rows)
    _check_alike(module, batch, metric, seed, (first, second))
    # Of the second pass, as a third would cost as much again.
    return first, len(rows), unscored(returned, metric)


def check_again(
    module: nn.Module,
    batch: Batch,
    first: Tensor,
    metric: OutputMetric,
    seed: int | None,
    where: str,
    second: Tensor | None = None,
) -> None:
    """Runs a batch once more: what is drawn may first be met in a later one, or in held-out data.

    Args:
        module: As for ``check_repeatable``.
        batch: On the module's device.
        first: ``[N, P, C]`` that the metric read of it before.
        metric: Reads the outputs.
        seed: See ``check_repeatable``.
        where: Which batch this is, for the sentence.
        second: What it answered in another pass; ``None``: it is run.

    Raises:
        ModelError: If the second answer is another one: in which batch, by how much, and why.
    """
    second = answers(module, batch, metric) if second is None else second
    try:
        _check_alike(module, batch, metric, seed, (first, second))
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None


def _check_alike(
    module: nn.Module,
    batch: Batch,
    metric: OutputMetric,
    seed: int | None,
    outputs: tuple[Tensor, Tensor],
) -> None:
    first, second = outputs
    if first.shape != second.shape:
        raise ModelError(
            f"the network's output is {tuple(first.shape)} at first and {tuple(second.shape)} for "
            "the same input again; it keeps something between calls, which must be reset"
        )
    apart, largest = _apart(first, second)
    if not apart <= _allowed(first) * largest:
        raise ModelError(
            f"the same input gives another answer: outputs differ by up to {apart:.3g}, where the "
            f"largest is {largest:.3g}. {_why(module, batch, metric, seed)}"
        )


def _why(module: nn.Module, batch: Batch, metric: OutputMetric, seed: int | None) -> str:
    """What is random, as far as two passes with fixed generators tell, and what to do."""
    before = random_state()
    answers(module, batch, metric)
    # What is kept may come to rest after some passes, as a buffer of the last few means does.
    if seed is None and random_state() != before:
        begin_alike(module, 0)
        first, second = answers(module, batch, metric), answers(module, batch, metric)
        if is_same(first, second):
            return (
                "Something is drawn (functional dropout without training=self.training, a random "
                "mask, noise): make it deterministic in eval(), or fix the generators in every "
                "pass of a search (allow_randomness=SEED, --allow-randomness SEED)"
            )
    return (
        "Something is kept between calls (a buffer that is written, a generator of the network's "
        "own), which no seed of torch, numpy or Python cures: reset it in forward, or in eval() "
        "leave it as it is"
    )


def mixes_examples(module: nn.Module, batch: Batch, metric: OutputMetric, outputs: Tensor) -> bool:
    """Whether one row of the inputs changes what is said of other rows.

    So do graph networks on ``[nodes, features]``, statistics of the batch, contrastive heads. Then
    rows are no examples, and all of them together are one.

    Args:
        module: The network.
        batch: Its first input's rows are taken for examples.
        metric: Reads the outputs.
        outputs: ``[N, P, C]`` for the batch as it is.

    Raises:
        ModelError: If the batch gives another answer after the pass with other rows.
    """
    if batch.size > 1 and len(outputs) != batch.size:
        return True  # nobody knows which row is whose
    other = batch.with_first_row_replaced()
    if unchecked_rows(batch) or other is None:
        return False
    changed = answers(module, other, metric)
    # The other rows in between: what is kept of the pass before shows only now.
    again = answers(module, batch, metric)
    if again.shape != outputs.shape or not is_same(outputs, again):
        raise ModelError(
            "the same input gives another answer once other examples were read in between: "
            f"{_difference(outputs, again)}. Something is kept between calls, in "
            f"{_kept_in(module, batch, other)}. Reset it in forward, or in eval() leave it as it is"
        )
    if changed.shape != outputs.shape:
        return True
    apart, largest = _apart(outputs[1:], changed[1:])
    return apart > 10 * _allowed(outputs) * largest


def _difference(first: Tensor, second: Tensor) -> str:
    """How far two answers ``[N, P, C]`` are apart, for a sentence."""
    if first.shape != second.shape:
        return f"its shape was {tuple(first.shape)} and is {tuple(second.shape)}"
    apart, largest = _apart(first, second)
    return f"outputs differ by up to {apart:.3g}, where the largest is {largest:.3g}"


def _kept_in(module: nn.Module, batch: Batch, other: Batch) -> str:
    """Which buffers a pass over other rows leaves different, for a sentence."""
    states: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for read in (batch, other):
            module(*read.args, **read.kwargs)
            states.append({name: found.clone() for name, found in module.named_buffers()})
    before, after = states
    names = [name for name, found in after.items() if not _is_equal(before.get(name), found)]
    if not names:
        return "an attribute of the network"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"the buffer{'s' if names[1:] else ''} {', '.join(map(repr, names[:3]))}{more}"


def _is_equal(first: Tensor | None, second: Tensor) -> bool:
    if first is None or first.shape != second.shape or first.dtype != second.dtype:
        return False
    # What is not a number stays so: a buffer of these need not have been written.
    return bool(((first == second) | ((first != first) & (second != second))).all())


def unchecked_rows(batch: Batch) -> str:
    """Why ``mixes_examples`` can say nothing of a batch; empty: it can, or there are no rows."""
    if batch.is_whole:
        return ""
    if batch.size < 2:
        return "every batch has one row"
    return "all rows are alike" if batch.with_first_row_replaced() is None else ""


def answers(module: nn.Module, batch: Batch, metric: OutputMetric) -> Tensor:
    """``[N, P, C]`` without gradients; see ``Batch.as_examples``."""
    with torch.no_grad():
        return batch.as_examples(metric.positions(module(*batch.args, **batch.kwargs)))


def is_same(expected: Tensor, found: Tensor) -> bool:
    """Whether two answers ``[N, P, C]`` differ by rounding only."""
    apart, largest = _apart(expected, found)
    return apart <= _allowed(expected) * largest


def _apart(first: Tensor, second: Tensor) -> tuple[float, float]:
    """The largest difference, and the largest of the first: some positions at a time."""
    if not first.numel():
        return 0.0, 0.0
    wide = torch.promote_types(first.dtype, torch.float32)
    step = max(1, LOGITS_AT_ONCE // first.shape[-1])
    pieces = (outputs.flatten(0, 1).split(step) for outputs in (first, second))
    apart = [_largest(a.to(wide) - b.to(wide)) for a, b in zip(*pieces, strict=True)]
    return float(torch.stack(apart).max()), float(_largest(first))


def _largest(values: Tensor) -> Tensor:
    """The largest size; ``abs`` would write another tensor."""
    least, most = values.aminmax()
    return torch.maximum(-least, most)


def _allowed(outputs: Tensor) -> float:
    # Coarser types than float32 get a few of their own roundings.
    return max(_SAME, 8 * torch.finfo(outputs.dtype).eps)
