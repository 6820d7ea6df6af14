"""Layers under their modules, as they are at one point: what is shown before a script runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self, final

from mpq.report.page.facts import Facts
from mpq.report.page.layers import Choice, LayerFacts
from mpq.report.page.numbers import plain


@final
@dataclass(frozen=True)
class Row:
    """One layer at the point.

    Args:
        place: Of the layer in the network.
        layer: What is known of it.
        choice: What it is at the point.
    """

    place: int
    layer: LayerFacts
    choice: Choice


@final
@dataclass(frozen=True)
class Group:
    """Neighbours of one module.

    Args:
        name: Path of the module.
        rows: Its layers.
    """

    name: str
    rows: tuple[Row, ...]

    @property
    def weight_bits(self) -> str:
        """Fewest to most."""
        return _span([row.choice.weight_bits for row in self.rows])

    @property
    def input_bits(self) -> str:
        """Fewest to most."""
        return _span([row.choice.input_bits for row in self.rows])

    @property
    def loss(self) -> float:
        """Of its layers alone."""
        return sum(row.choice.loss for row in self.rows)

    def cost(self, resource: int) -> float:
        """Of its layers, of one of the shown resources."""
        return sum(row.choice.costs[resource] or 0.0 for row in self.rows)


def _span(bits: Sequence[float | None]) -> str:
    known = [each for each in bits if each is not None]
    if not known:
        return plain(None)
    low, high = plain(min(known)), plain(max(known))
    return low if low == high else f"{low} to {high}"


@final
@dataclass(frozen=True)
class Wholes:
    """What shares are of, and the largest parts, which bars are drawn to.

    Args:
        loss: Sum over layers.
        most_loss: Of one layer.
        costs: ``[shown resources]`` of the network; ``None`` where it cannot run.
        most_costs: ``[shown resources]`` of one layer.
    """

    loss: float
    most_loss: float
    costs: tuple[float | None, ...]
    most_costs: tuple[float, ...]

    @classmethod
    def of(cls, facts: Facts, groups: Sequence[Group]) -> Self:
        """At the answer."""
        choices = [row.choice for group in groups for row in group.rows]
        shown = [resource.name for resource in facts.resources if resource.is_shown]
        costs = facts.points[facts.answer].costs if facts.points else {}
        return cls(
            sum(choice.loss for choice in choices),
            max((choice.loss for choice in choices), default=0.0),
            tuple(costs.get(name) for name in shown),
            tuple(
                max((choice.costs[k] or 0.0 for choice in choices), default=0.0)
                for k in range(len(shown))
            ),
        )


def groups_at_answer(facts: Facts) -> tuple[Group, ...]:
    """Every layer under its module, at the answer."""
    if not facts.points:
        return ()
    chosen = facts.points[facts.answer].choices
    rows = (
        Row(place, layer, layer.choices[chosen[place]]) for place, layer in enumerate(facts.layers)
    )
    return tuple(
        Group(name, tuple(found)) for name, found in groupby(rows, key=lambda row: row.layer.group)
    )
