"""Along which axis of every input the examples lie, found by running fewer of them."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, product
from typing import Final

import torch
from torch import Tensor, nn

from mpq.errors import ModelError
from mpq.network.behaviour import answers, is_same, mixes_examples
from mpq.network.dataflow import SHAPE_FAILURES
from mpq.network.examples import Batch, Calibration
from mpq.network.input_parts import length_of
from mpq.network.metric import OutputMetric
from mpq.network.modules import device_of

Axes = tuple[int | None, ...]
_MOST: Final = 64
"""How many ways of cutting are tried: all ways of three inputs with three ways each are 27."""


def as_searched(
    module: nn.Module, data: Calibration, metric: OutputMetric, is_drawing: bool
) -> Calibration:
    """The data with the examples that ``Network.of`` finds in it, without looking at layers.

    Args:
        module: Our own copy of the model.
        data: As it came.
        metric: Reads the outputs.
        is_drawing: See ``find_axes``.

    Returns:
        Cut along the axes where examples lie; every batch one example where rows change each
        other's outputs.
    """
    batch = data.first_of_several().to(device_of(module))
    axes = find_axes(module, batch, metric, is_drawing)
    batch = replace(batch, axes=axes)
    with torch.no_grad():
        returned = metric.positions(module(*batch.args, **batch.kwargs))
    if len(returned) != batch.size:
        axes = find_second_axis(module, batch, metric, len(returned), is_drawing) or axes
        batch = replace(batch, axes=axes)
    is_mixing = mixes_examples(module, batch, metric, batch.as_examples(returned))
    data = data.along(axes)
    return data.whole() if is_mixing else data


def find_axes(
    module: nn.Module, batch: Batch, metric: OutputMetric, is_drawing: bool
) -> Axes | None:
    """The way of cutting a batch after which its rows give what they gave in the whole batch.

    An input that is as long as the batch need not hold the examples: a mask ``[T, T]`` of as many
    positions, a table. States ``[layers, N, H]`` have them second. Two passes where the first guess
    is right, none where there is nothing to choose.

    Args:
        module: Our own copy of the model.
        batch: On its device.
        metric: Reads the outputs.
        is_drawing: Whether fewer rows draw other numbers; then it is enough that they run.

    Returns:
        ``Batch.axes``; ``None`` where nothing is to be chosen, or no way is right.
    """
    ways = _ways(batch) if batch.size > 1 else None
    if ways is None:
        return None
    outputs = answers(module, batch, metric)
    if len(outputs) != batch.size:
        return None
    for axes in ways:
        if _is_right(module, replace(batch, axes=axes), metric, outputs, is_drawing):
            return axes
    return None


def find_second_axis(
    module: nn.Module, batch: Batch, metric: OutputMetric, rows: int, is_drawing: bool
) -> Axes | None:
    """The same for a network that reads the sequence first, ``[T, N, ...]``.

    Asked where there are not as many rows of outputs as examples.

    Args:
        module: Our own copy of the model.
        batch: As it was cut so far, by the first axis.
        metric: Reads the outputs.
        rows: Of outputs, as the network returns them.
        is_drawing: See ``find_axes``.

    Returns:
        ``Batch.axes``; ``None`` where the second axis does not have the examples either.
    """
    if batch.is_whole or rows < 2 or length_of(batch.parts[0], 1) != rows:
        return None
    by_second = replace(batch, axes=(1,) * len(batch.parts))
    outputs = answers(module, by_second, metric)
    for axes in _ways(by_second, 1) or iter([(1, *(None for _ in batch.parts[1:]))]):
        if _is_right(module, replace(batch, axes=axes), metric, outputs, is_drawing):
            return axes
    return None


def _ways(batch: Batch, first: int = 0) -> Iterator[Axes] | None:
    """All ways of cutting, those that need least explanation first; ``None``: there is one."""
    size, choices = batch.size, list[Axes]()
    for part in batch.parts[1:]:
        along = [axis for axis in (0, 1) if length_of(part, axis) == size]
        choices.append((*along, None))
    if all(each == (None,) for each in choices):
        return None
    # The first axis that fits is the first choice of every part.
    found = product(*(range(len(each)) for each in choices))
    ordered = sorted(islice(found, 4 * _MOST), key=lambda way: sum(place > 0 for place in way))
    return (
        (first, *(each[place] for each, place in zip(choices, way, strict=True)))
        for way in ordered[:_MOST]
    )


def _is_right(
    module: nn.Module, batch: Batch, metric: OutputMetric, outputs: Tensor, is_drawing: bool
) -> bool:
    # All but the last: what is cut along an axis of another meaning has then too few of it.
    fewer = batch.slice(0, batch.size - 1)
    try:
        found = answers(module, fewer, metric)
    # What is cut wrongly may also hide every position, so that the answer is no number.
    except (*SHAPE_FAILURES, ModelError):
        return False
    expected = outputs[: batch.size - 1]
    return found.shape == expected.shape and (is_drawing or is_same(expected, found))
