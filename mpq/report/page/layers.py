"""Layers as the page shows them: what each may be, and what that loses and costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Choice:
    """What a layer is at one point or several.

    Args:
        precision: As it is spelled; shortened where parts of the layer have bits of their own.
        weight_bits: Mean bits of a weight; ``None`` of what has none, such as a cache.
        input_bits: Mean bits of an input.
        loss: Its own part of the predicted loss.
        costs: ``[shown resources]`` its part of each; ``None`` where it cannot run.
        parts: Where channels have bits of their own, how many have which.
    """

    precision: str
    weight_bits: float | None
    input_bits: float
    loss: float
    costs: tuple[float | None, ...]
    parts: str = ""


@final
@dataclass(frozen=True)
class LayerFacts:
    """One layer.

    Args:
        name: Its path in the network.
        kind: Such as ``conv2d``; empty where it is not known.
        num_weights: Weights; ``None``: not known.
        group: The module that it is shown under.
        tie: The layers that share its precision, if there are any.
        note: Why it had no choice, or fewer; empty: it could be all.
        choices: What it is at the points.
        sensitivity: ``[B]`` predicted loss at every candidate.
        is_allowed: ``[B]`` whether it may take it.
    """

    name: str
    kind: str
    num_weights: int | None
    group: str
    tie: tuple[str, ...]
    note: str
    choices: tuple[Choice, ...]
    sensitivity: tuple[float, ...]
    is_allowed: tuple[bool, ...]


@final
@dataclass(frozen=True)
class Move:
    """The answer with one layer in another precision.

    Args:
        layer: Which one, with those tied to it.
        before: Its precision in the answer.
        after: Its precision here.
        loss: Rise of the predicted loss; below 0 it falls.
        costs: ``[shown resources]`` rise of each.
        is_within: Whether all budgets still hold.
    """

    layer: str
    before: str
    after: str
    loss: float
    costs: tuple[float, ...]
    is_within: bool


@final
@dataclass(frozen=True)
class Pair:
    """Two layers whose errors add up (above 0) or cancel: what that changes of the loss."""

    first: str
    second: str
    loss: float


def groups_of(names: Sequence[str]) -> tuple[str, ...]:
    """``[L]`` the module that each layer is shown under: its path up to the first number.

    ``model.layers.3.mlp.up_proj`` is in ``model.layers.3``; without a number, in what holds it.

    >>> groups_of(["stem.conv", "blocks.0.first.conv", "head"])
    ('stem', 'blocks.0', 'head')
    """
    return tuple(map(_group, names))


def _group(name: str) -> str:
    words = name.split(".")
    numbers = (place for place, word in enumerate(words) if word.isdigit())
    place = next(numbers, None)
    if place is not None:
        return ".".join(words[: place + 1])
    return ".".join(words[:-1]) or name
