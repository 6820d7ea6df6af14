"""Which numbers of a forward pass turn together if a space is rotated: traced by labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, final

import numpy as np
from torch import Tensor, nn

from mpq.network.arguments import tensors_in
from mpq.transforms.label_trace import FREE, Labels, LabelTrace
from mpq.transforms.parameter_views import View

Ids: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"


@final
@dataclass(frozen=True)
class Norm:
    """A normalization's weight and bias, which are folded into the layers that read behind it.

    Args:
        weight: Name of the parameter.
        bias: Name of the parameter; empty: none.
    """

    weight: str
    bias: str = ""


@final
@dataclass(frozen=True)
class Member:
    """An axis of a parameter that turns with a space.

    Args:
        parameter: Its name.
        axis: Of the parameter.
        coordinates: ``[n]`` of the space; ``FREE``: none.
        is_reader: Whether a layer's inputs lie along it.
        norm: The normalization before a reader that is folded into it.
        bias: Of a reader; empty: it has none.
    """

    parameter: str
    axis: int
    coordinates: Labels
    is_reader: bool = False
    norm: Norm | None = None
    bias: str = ""


@final
@dataclass(eq=False)
class Space:
    """Coordinates that may be rotated: those that one layer makes, and all that are added to them.

    Args:
        size: How many coordinates.
        members: Axes of parameters along which they lie.
        blocks: ``[size]``: coordinates of one number turn together, as they are treated alike.
        dead: Coordinates that have to stay, and why.
        keeps_mean: Whether a LayerNorm reads it, so that the mean of a block has to stay.
    """

    size: int
    blocks: Ids
    members: dict[Member, None] = field(default_factory=dict)
    dead: dict[int, str] = field(default_factory=dict)
    keeps_mean: bool = False


@final
@dataclass(frozen=True, eq=False)
class Label:
    """What a tensor holds of a space.

    Args:
        space: Key of the space.
        coordinates: Shaped as the tensor; ``FREE``: none of the space.
        norm: The normalization whose weight these numbers were multiplied with.
        is_squared: Whether they are squares; their sum over a block is that of any rotation.
    """

    space: str
    coordinates: Tensor
    norm: Norm | None = None
    is_squared: bool = False

    @property
    def varying(self) -> tuple[int, ...]:
        """Axes along which coordinates differ."""
        x = self.coordinates
        return tuple(
            axis
            for axis in range(x.ndim)
            if x.shape[axis] > 1 and not bool((x == x.narrow(axis, 0, 1)).all())
        )

    def shaped(self, coordinates: Tensor) -> "Label":
        """The same of another tensor."""
        return replace(self, coordinates=coordinates)


Use: TypeAlias = tuple[str, Member | Norm]
"""What a use of a parameter has to do with a space: its key, and how the parameter is changed."""


@final
class SpaceTrace(LabelTrace):
    """Follows the outputs of every layer through a forward pass, operation by operation.

    A label of coordinates goes beside each tensor, as in ``ChannelTrace``. A rotation comes through
    where all coordinates of a block are treated alike and linearly: moved, scaled by one number,
    added to another tensor of the same space. So the spaces of two tensors that are added become
    one (a residual stream), and what treats parts of a space unlike splits it into blocks (the
    values of attention: a block for each head). A layer that reads a space ends it, as its weight
    can be rotated back. Whatever else reads it ends its freedom, and the reason is kept.

    Args:
        module: Whose parameters are named.
        rules: Operation to what it does to labels.
    """

    def __init__(self, module: nn.Module, rules: Mapping[str, Any]) -> None:
        super().__init__(module, rules)
        self.layers: dict[str, str] = {}
        self.uses: dict[str, list[frozenset[Use]]] = {}
        self._spaces: dict[str, Space] = {}
        self._joined: dict[str, str] = {}
        self._labels: dict[int, tuple[Tensor, Label]] = {}

    @property
    def spaces(self) -> dict[str, Space]:
        """Those that were not joined to another one."""
        return {key: space for key, space in self._spaces.items() if key not in self._joined}

    def key(self, space: str) -> str:
        """The key that a space has now."""
        while space in self._joined:
            space = self._joined[space]
        return space

    def space(self, label: Label) -> Space:
        """The space of a label."""
        return self._spaces[self.key(label.space)]

    def label(self, value: Any) -> Label | None:
        """Of a tensor; ``None``: no rotation reaches it."""
        found = self._labels.get(id(value))
        return None if found is None else found[1]

    def give(self, tensor: Tensor, label: Label | None) -> None:
        """Labels a tensor."""
        if label is not None:
            self._labels[id(tensor)] = (tensor, label)

    def end(self, values: Any, why: str) -> None:
        """Ends the freedom of all that is in some tensors, and of parameters among them."""
        for tensor in tensors_in(values):
            self.end_label(self.label(tensor), why)
        self.unknown_use(values)

    def end_label(self, label: Label | None, why: str) -> None:
        """Ends the freedom of a label's coordinates."""
        if label is not None:
            space = self.space(label)
            if len(space.dead) < space.size:
                for coordinate in label.coordinates.unique().tolist():
                    if coordinate != FREE:
                        space.dead.setdefault(coordinate, why)

    def unknown_use(self, *values: Any) -> None:
        """A use of parameters that no rotation can be made up for in."""
        for tensor in tensors_in(values):
            view = self.views.of(tensor)
            if view is not None:
                self.use(view.name, ())

    def use(self, parameter: str, uses: Sequence[Use]) -> None:
        """Writes down what a use of a parameter has to do with spaces; all uses have to agree."""
        self.uses.setdefault(parameter, []).append(frozenset(uses))

    def made(self, view: View, axis: int, size: int) -> str:
        """Key of the space that a parameter makes along one of its axes."""
        key = f"{view.name} {axis}"
        self._spaces.setdefault(key, Space(size, np.zeros(size, dtype=np.int64)))
        return key

    def turns(self, space: str, member: Member) -> Use:
        """An axis of a parameter turns with a space."""
        self._spaces[self.key(space)].members[member] = None
        return space, member

    def join(self, first: str, second: str) -> None:
        """Two spaces of one size turn alike from now on, coordinate by coordinate."""
        first, second = self.key(first), self.key(second)
        if first == second:
            return
        kept, other = self._spaces[first], self._spaces[second]
        kept.members |= other.members
        kept.dead = {**other.dead, **kept.dead}
        kept.blocks = split(kept.blocks, other.blocks)
        kept.keeps_mean |= other.keeps_mean
        self._joined[second] = first

    def split_by_lines(self, label: Label, axis: int) -> None:
        """Coordinates that do not lie on one line along an axis no longer turn together."""
        x, varying = label.coordinates, {axis % label.coordinates.ndim, *label.varying}
        for other in set(range(x.ndim)) - varying:
            x = x.narrow(other, 0, 1)
        lines = x.movedim(axis, -1).reshape(-1, x.shape[axis])
        space, on = self.space(label), np.full(self.space(label).size, FREE, dtype=np.int64)
        for number, line in enumerate(lines.unique(dim=0).tolist()):
            own = [coordinate for coordinate in line if coordinate != FREE]
            if (on[own] != FREE).any() or len(set(own)) < len(own):
                self.end_label(label, "is mixed with different channels in different places")
                return
            on[own] = number
        space.blocks = split(space.blocks, on)


def split(first: Ids, second: Ids) -> Ids:
    """``[n]`` numbers that are equal where both are.

    >>> split(np.array([0, 0, 1, 1]), np.array([5, 6, 6, 6])).tolist()
    [0, 1, 2, 2]
    """
    found: Ids = np.unique(np.stack([first, second]), axis=1, return_inverse=True)[1].reshape(-1)
    return found
