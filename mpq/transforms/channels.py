"""Which numbers of a forward pass a factor of one channel would reach: traced by labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

from torch import Tensor, nn

from mpq.network.arguments import tensors_in
from mpq.transforms.label_trace import FREE, Labels, LabelTrace
from mpq.transforms.parameter_views import View


@final
@dataclass(frozen=True)
class Axis:
    """Entries of one axis of a parameter, and the channel whose factor each gets.

    Args:
        parameter: Its name.
        axis: Of the parameter.
        labels: ``[n]`` channels; ``FREE``: none.
    """

    parameter: str
    axis: int
    labels: Labels


@final
@dataclass(frozen=True)
class Reader:
    """A layer's weight that meets the channels, and makes up for their factors.

    Args:
        weight: Along which axis.
        inputs: ``[C]`` the channels of what the layer reads.
        out_axis: Of the weight: its output channels.
        bias: Name of the parameter that is added; empty: none.
    """

    weight: Axis
    inputs: Labels
    out_axis: int
    bias: str = ""


@final
@dataclass(eq=False)
class Group:
    """The channels that one parameter makes, each with a factor of its own.

    Args:
        size: How many.
        members: What makes them: all of it is divided by the factors.
        readers: What meets them: all of it is multiplied by them.
        dead: Channels whose factor has to be 1, and why.
        is_layer: Whether a matrix or a kernel makes them, and no normalization.
        before: The kernel whose outputs a normalization scales, where one feeds it alone.
    """

    size: int
    members: tuple[Axis, ...]
    is_layer: bool
    before: str = ""
    readers: dict[Reader, None] = field(default_factory=dict)
    dead: dict[int, str] = field(default_factory=dict)

    def add(self, member: Axis) -> None:
        """Something more that is divided by the factors: a bias that is added later on."""
        if member not in self.members:
            self.members = (*self.members, member)


Effect: TypeAlias = tuple[str, str]
"""A group and ``makes`` or ``reads``: what a use of a parameter has to do with a factor."""


@final
class ChannelTrace(LabelTrace):
    """Follows every channel of every layer through a forward pass, operation by operation.

    A tensor of labels goes beside each tensor: ``labels[i]`` is the channel whose factor number
    ``i`` would be multiplied with. Operations that only move numbers move the labels as well;
    functions with f(s x) = s f(x) keep them; a product with another tensor keeps them; a layer ends
    them, as its weight can make up for the factors. Whatever else reads a labelled number ends the
    freedom of that channel: its factor is 1, and the reason is kept.

    Args:
        module: Whose parameters are named.
    """

    def __init__(self, module: nn.Module, rules: "Mapping[str, Any]") -> None:
        super().__init__(module, rules)
        self.groups: dict[str, Group] = {}
        self.unread: dict[str, str] = {}
        self.layers: dict[str, None] = {}
        self._labels: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}
        self._uses: dict[str, list[dict[Effect, Axis]]] = {}

    def labels(self, value: Any) -> dict[str, Tensor]:
        """Group to the labels of a tensor, shaped as it is."""
        found = self._labels.get(id(value))
        return {} if found is None else found[1]

    def give(self, tensor: Tensor, labels: Mapping[str, Tensor]) -> None:
        """Labels a tensor."""
        if labels:
            self._labels.setdefault(id(tensor), (tensor, {}))[1].update(labels)

    def end(self, values: Any, why: str) -> None:
        """Ends the freedom of all channels in some tensors, and of parameters among them."""
        for tensor in tensors_in(values):
            for group, labels in self.labels(tensor).items():
                self.end_channels(group, labels, why)
        self.unknown_use(values)

    def end_channels(self, group: str, labels: Tensor, why: str) -> None:
        """Ends the freedom of the channels that some labels name."""
        dead = self.groups[group].dead
        for channel in labels.unique().tolist():
            if channel != FREE:
                dead.setdefault(channel, why)

    def group(self, view: View, members: Sequence[Axis], is_layer: bool, before: str = "") -> str:
        """The group of the channels that a parameter makes along its member's axis."""
        key = f"{view.name} {members[0].axis}"
        size = len(members[0].labels)
        found = self.groups.setdefault(key, Group(size, tuple(members), is_layer, before))
        if found.members != tuple(members):  # in another call beside another bias
            found.dead = dict.fromkeys(range(size), "is made by layers that share a weight")
        return key

    def unknown_use(self, *values: Any) -> None:
        """A use of parameters that no factor can be made up for in."""
        for tensor in tensors_in(values):
            view = self.views.of(tensor)
            if view is not None:
                self.use(view, {})

    def without_rule(self, values: Any, operation: str) -> None:
        """Matrices that such an operation reads (an LSTM's) are layers without a site."""
        super().without_rule(values, operation)
        for tensor in tensors_in(values):
            view = self.views.of(tensor)
            if view is not None and len(view.axes) > 1:
                self.layers[view.name] = None
                self.unread.setdefault(view.name, f"is read by {operation}")

    def use(self, view: View, effects: Mapping[Effect, Axis]) -> None:
        """Writes down what a use of a parameter has to do with factors; all uses have to agree."""
        self._uses.setdefault(view.name, []).append(dict(effects))

    def uses(self, parameter: str) -> bool:
        """Whether the pass reads a parameter."""
        return parameter in self._uses

    def num_uses(self, parameter: str) -> int:
        """How often the pass reads a parameter."""
        return len(self._uses.get(parameter, ()))

    def read(self, group: str, reader: Reader) -> None:
        """A layer makes up for the factors of a group."""
        self.groups[group].readers[reader] = None

    def finish(self, output: Any) -> None:
        """Ends what reaches the output, and factors that uses of a parameter do not agree on."""
        self.end(output, "is an output of the network")
        for name, uses in self._uses.items():
            effects = {(effect, axis) for use in uses for effect, axis in use.items()}
            for (group, role), axis in effects:
                if any(use.get((group, role)) != axis for use in uses):
                    dead = self.groups[group].dead
                    for channel in set(axis.labels) - {FREE}:
                        dead.setdefault(channel, f"meets {name}, which is used otherwise as well")
