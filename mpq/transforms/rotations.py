"""Which spaces of a network can be rotated, and what a rotation changes of its parameters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, final

import numpy as np
import torch
from torch import Tensor, nn

from mpq.network.examples import Batch
from mpq.network.reparametrization import Addition, Change, Orthogonal, Rotation, Scaling
from mpq.transforms.label_trace import FREE
from mpq.transforms.parameter_views import run_under
from mpq.transforms.space_rules import RULES
from mpq.transforms.spaces import Member, Norm, Space, SpaceTrace, Use

_ALONE: Final = "is treated unlike all other channels"
_MOST: Final = 100.0
"""How large a normalization's bias may be beside its weight, where it stays: that is rounded."""


@final
@dataclass(frozen=True)
class Run:
    """Blocks along an axis of a parameter, one behind the other.

    Args:
        parameter: Its name.
        axis: Of the parameter.
        start: Of the first block.
        count: Of blocks.
    """

    parameter: str
    axis: int
    start: int
    count: int


@final
@dataclass(frozen=True)
class Turn:
    """A space with one rotation of its own, which all of its blocks share.

    Args:
        size: Of a block: the residual stream's, or a head's.
        runs: Where the blocks lie in parameters.
        keeps_mean: Whether the mean of a block has to stay.
        readers: Weights of the layers that read it.
    """

    size: int
    runs: tuple[Run, ...]
    keeps_mean: bool
    readers: tuple[str, ...]

    def changes(self, by: Orthogonal) -> tuple[Change, ...]:
        """The rotation of every parameter, after ``Turns.folded``.

        Args:
            by: ``[size, size]``; with rows that add up to 1 where ``keeps_mean``.
        """
        return tuple(Rotation(r.parameter, r.axis, r.start, r.count, by) for r in self.runs)


@final
@dataclass(frozen=True, eq=False)
class Turns:
    """What a forward pass showed.

    Args:
        turns: Spaces, in the order in which they are made.
        folded: What is done before: weights and biases of normalizations go to the layers behind.
        why_not: Weight of a layer whose inputs cannot be rotated, and why.
    """

    turns: tuple[Turn, ...]
    folded: tuple[Change, ...]
    why_not: Mapping[str, str]

    @property
    def num_readers(self) -> int:
        """Layers that read what is rotated."""
        return len({name for turn in self.turns for name in turn.readers})

    @classmethod
    def of(cls, module: nn.Module, batch: Batch) -> "Turns":
        """Runs one batch.

        Args:
            module: In evaluation mode; left as found.
            batch: One or two examples: all tensors of the pass are held.
        """
        trace = SpaceTrace(module, RULES)
        trace.end(run_under(trace, module, batch), "is an output of the network")
        unreached = [name for name, _ in module.named_parameters() if name not in trace.uses]
        if unreached:  # what it reads of other examples nobody has followed
            why = f"the traced examples do not reach {unreached[0]}, which may read what is rotated"
            return cls((), (), dict.fromkeys(trace.layers, why))
        parameters = {name: p.detach() for name, p in module.named_parameters()}
        _settle(trace, parameters)
        spaces = [space for space in trace.spaces.values() if any(_readers(space))]
        turns = tuple(turn for space in spaces for turn in _turns(space))
        read = {name for turn in turns for name in turn.readers}
        left = {name: _reason(name, why, trace) for name, why in trace.layers.items()}
        why_not = {name: why for name, why in left.items() if name not in read}
        folded = tuple(change for space in spaces for change in _folded(space, parameters))
        return cls(turns, folded, why_not)


def _settle(trace: SpaceTrace, parameters: Mapping[str, Tensor]) -> None:
    """Ends what cannot be rotated as something else cannot, until nothing more ends."""
    before = -1
    while before != (count := sum(len(space.dead) for space in trace.spaces.values())):
        before = count
        for name, uses in trace.uses.items():
            _agree(trace, name, uses)
        for space in trace.spaces.values():
            _end_blocks(space)
            for norm in _norms(space):
                why = _why_not_folded(norm, space, trace, parameters)
                if why or space.dead:
                    _end(space, range(space.size), why or next(iter(space.dead.values())))


def _agree(trace: SpaceTrace, name: str, uses: Sequence[frozenset[Use]]) -> None:
    """A parameter has one set of numbers: every use of it has to want the same change."""
    wanted = [{(trace.key(key), _without_role(what)): what for key, what in use} for use in uses]
    for use in wanted:
        for change, what in use.items():
            if not all(change in other for other in wanted):
                space = trace.spaces[change[0]]
                coordinates = range(space.size) if isinstance(what, Norm) else what.coordinates
                _end(space, coordinates, f"meets {name}, which is used otherwise as well")


def _without_role(what: Member | Norm) -> Member | Norm:
    """What is done to the parameter; whoever writes and reads with one does the same to it."""
    return what if isinstance(what, Norm) else replace(what, is_reader=False, bias="")


def _end(space: Space, coordinates: Sequence[int], why: str) -> None:
    for coordinate in set(coordinates) - {FREE}:
        space.dead.setdefault(coordinate, why)


def _blocks(space: Space) -> dict[int, tuple[int, ...]]:
    """First coordinate to all coordinates of every block, in order."""
    found: dict[int, list[int]] = {}
    for coordinate, block in enumerate(space.blocks.tolist()):
        found.setdefault(block, []).append(coordinate)
    return {block[0]: tuple(block) for block in found.values()}


def _end_blocks(space: Space) -> None:
    """Blocks are rotated as a whole, and lie as a whole in every parameter."""
    blocks = _blocks(space)
    for block in blocks.values():
        why = next((space.dead[c] for c in block if c in space.dead), "")
        if why or len(block) == 1:
            _end(space, block, why or _ALONE)
    for member in space.members:
        place = 0
        while place < len(member.coordinates):
            first = member.coordinates[place]
            if first == FREE or first in space.dead:
                place += 1
                continue
            block = blocks.get(first, ())
            found = member.coordinates[place : place + max(1, len(block))]
            if found != block:
                why = f"lies in another order in {member.parameter}"
                own = [c for b in blocks.values() if set(b) & set(found) for c in b]
                _end(space, own, why)
            place += len(found)


def _readers(space: Space) -> Iterator[Member]:
    """Layers that read any of what can be rotated."""
    for member in space.members:
        if member.is_reader and not space.dead.keys() >= set(member.coordinates) - {FREE}:
            yield member


def _norms(space: Space) -> dict[Norm, None]:
    return {member.norm: None for member in space.members if member.norm is not None}


def _why_not_folded(
    norm: Norm, space: Space, trace: SpaceTrace, parameters: Mapping[str, Tensor]
) -> str:
    """Why a normalization's weight and bias cannot go to the layers behind it; empty: they can."""
    if not bool((parameters[norm.weight] != 0).all()):
        return f"goes through {norm.weight}, which has a weight of 0"
    if not norm.bias or not bool(parameters[norm.bias].any()):
        return ""
    if _keeps_bias(norm, space):
        quotients = parameters[norm.bias].double() / parameters[norm.weight].double()
        if not bool((quotients.abs() <= _MOST).all()):
            return f"goes through {norm.weight}, which is near 0 where {norm.bias} is not"
        return ""
    for reader in (r for r in space.members if r.norm == norm):
        if len(trace.uses[reader.bias]) != len(trace.uses[reader.parameter]):
            return f"meets {reader.bias}, which is used otherwise as well"
    return ""


def _keeps_bias(norm: Norm, space: Space) -> bool:
    """Whether a normalization's bias turns with the space, as some reader has none to take it."""
    return any(not reader.bias for reader in space.members if reader.norm == norm)


def _turns(space: Space) -> Iterator[Turn]:
    """One for every size of a block."""
    blocks = [block for first, block in _blocks(space).items() if first not in space.dead]
    for size in sorted({len(block) for block in blocks}, reverse=True):
        firsts = {block[0] for block in blocks if len(block) == size}
        biases = (n.bias for n in _norms(space) if n.bias and _keeps_bias(n, space))
        others = (Member(bias, 0, tuple(range(space.size))) for bias in biases)
        members = (*space.members, *others)
        runs = tuple(run for member in members for run in _runs(member, firsts, size))
        readers = tuple(m.parameter for m in _readers(space) if firsts & set(m.coordinates))
        if readers:
            # Two calls of a layer read it twice, and turn its weight once.
            yield Turn(size, tuple(dict.fromkeys(runs)), space.keeps_mean, readers)


def _runs(member: Member, firsts: set[int], size: int) -> Iterator[Run]:
    places = [i for i, coordinate in enumerate(member.coordinates) if coordinate in firsts]
    while places:
        count = 1
        while count < len(places) and places[count] == places[0] + count * size:
            count += 1
        yield Run(member.parameter, member.axis, places[0], count)
        places = places[count:]


def _folded(space: Space, parameters: Mapping[str, Tensor]) -> Iterator[Change]:
    """Each normalization's weight is 1 afterwards, and its bias 0 or what is rotated."""
    members = [m for m in space.members if m.norm is not None]
    # A layer that is called twice is folded once.
    readers = {(m.parameter, m.norm): m for m in members}.values()
    for norm in _norms(space):
        weight = parameters[norm.weight].double().cpu()
        bias = parameters[norm.bias].double().cpu() if norm.bias else torch.zeros_like(weight)
        left = bias / weight if _keeps_bias(norm, space) else torch.zeros_like(bias)
        for reader in (r for r in readers if r.norm == norm):
            if bool((bias != 0).any()) and not bool((left != 0).any()):
                matrix = parameters[reader.parameter].double().cpu()
                terms = torch.tensordot(matrix, bias, ([reader.axis], [0]))
                yield Addition(reader.bias, 0, terms.numpy())
            yield Scaling(reader.parameter, reader.axis, weight.numpy().astype(np.float32))
        yield Addition(norm.weight, 0, (1 - weight).numpy())
        if bool((left != bias).any()):
            yield Addition(norm.bias, 0, (left - bias).numpy())


def _reason(name: str, why: str, trace: SpaceTrace) -> str:
    for space in trace.spaces.values():
        if any(m.is_reader and m.parameter == name for m in space.members) and space.dead:
            maker = next(iter(space.members)).parameter
            return f"reads channels of {maker}, of which one {next(iter(space.dead.values()))}"
    return why or "reads channels that others mix up"
