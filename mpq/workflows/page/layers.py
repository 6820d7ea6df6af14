"""Every layer of a result, with what it is at the points that the page shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Final, final

from mpq._support.arrays import Columns
from mpq.quantization.channel_bits import GROUPS, INPUTS, OUTPUTS, ChannelBits
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.report.page.layers import Choice, LayerFacts, groups_of
from mpq.report.page.numbers import rounded
from mpq.workflows.page.accounts import Accounts
from mpq.workflows.searched import Searched


@final
@dataclass(frozen=True, eq=False)
class Choices:
    """What layers are at the points: each precision of a layer once, however many points have it.

    Args:
        accounts: What that loses and costs.
        weightless: Names of layers without weights: caches and operands.
    """

    accounts: Accounts
    weightless: frozenset[str] = frozenset()
    _found: list[dict[Precision, Choice]] = field(default_factory=list, init=False)

    def of(self, precisions: Mapping[str, Precision], columns: Columns) -> tuple[int, ...]:
        """``[L]`` the place of every layer's precision among its own, which may be a new one."""
        names, accounts = self.accounts.names, self.accounts
        if not self._found:
            self._found.extend({} for _ in names)
        losses = accounts.by_layer(accounts.problem.loss, columns).tolist()
        costs = [accounts.by_layer(table, columns).tolist() for table in accounts.shown_tables]
        places = []
        for row, (name, known) in enumerate(zip(names, self._found, strict=True)):
            precision = precisions[name]
            if precision not in known:
                own = tuple(None if isnan(each[row]) else rounded(each[row]) for each in costs)
                found = _choice(precision, rounded(losses[row]), own)
                # Its precision says 32 bits, as of any weight that stays as it came.
                is_bare = name in self.weightless
                known[precision] = replace(found, weight_bits=None) if is_bare else found
            places.append(list(known).index(precision))
        return tuple(places)

    def by_layer(self) -> list[tuple[Choice, ...]]:
        """``[L]`` what every layer is at some point."""
        return [tuple(known.values()) for known in self._found]

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """All that occur."""
        return tuple(dict.fromkeys(precision for known in self._found for precision in known))


def _choice(precision: Precision, loss: float, costs: tuple[float | None, ...]) -> Choice:
    weight, read = precision.weight, precision.activation
    spelled, parts = str(precision), ""
    # Its spelling has a letter for every part; the page says how many have which bits.
    if weight.channels is not None:
        spelled = f"{spelled.partition(':')[0]}a{read.mean_bits:g}"
        parts = _counted(weight.channels)
    elif read.steps is not None:
        widths = ", ".join(str(number.bits) for number in read.steps.by_cluster)
        spelled, parts = spelled.partition(":")[0], f"{widths} bits by cluster of steps"
    elif read.channels is not None:
        spelled, parts = spelled.partition(":")[0], _counted(read.channels)
    return Choice(spelled, weight.mean_bits, read.mean_bits, loss, costs, parts)


_WORDS: Final = {OUTPUTS: "channels", INPUTS: "inputs", GROUPS: "weights"}


def _counted(channels: ChannelBits) -> str:
    pairs = zip(channels.numbers, channels.counts, strict=True)
    what = _WORDS[channels.axis]
    return ", ".join(f"{count} {what} at {number.bits} bits" for number, count in pairs)


def layer_facts(result: Searched, accounts: Accounts, choices: Choices) -> list[LayerFacts]:
    """``[L]`` in the network's order."""
    names = accounts.names
    known = {layer.name: layer for layer in result.layers}
    kinds = {layer.name: layer.kind for layer in result.assignment.layers}
    tie_of = {name: tie for tie in result.assignment.ties for name in tie}
    tie_of |= {name: tie for tie in result.problem.ties for name in tie}
    rows = zip(
        names, groups_of(names), choices.by_layer(), accounts.sensitivity, accounts.allowed,
        strict=True,
    )  # fmt: skip
    return [
        LayerFacts(
            name,
            kinds.get(name, ""),
            known[name].num_weights if name in known else None,
            group,
            tie_of.get(name, ()),
            _note(result, name, [bool(x) for x in allowed]),
            found,
            tuple(sensitivity.tolist()),
            tuple(bool(x) for x in allowed),
        )
        for name, group, found, sensitivity, allowed in rows
    ]


def _note(result: Searched, name: str, allowed: Sequence[bool]) -> str:
    """Why a layer had no choice."""
    made, constraints = result.provenance, result.problem.constraints
    if name in made.unshipped:
        return f"left as it came: {made.unshipped[name]}"
    if name in made.reach.never:
        return "left as it came: no example reached it"
    if name in constraints.fixed:
        return f"fixed at {constraints.fixed[name]}"
    if sum(allowed) == 1:
        (only,) = (p for p, is_allowed in zip(result.problem.loss.precisions, allowed, strict=True)
                   if is_allowed)  # fmt: skip
        return "left as it came" if only == ORIGINAL else f"only {only} is possible"
    return ""
