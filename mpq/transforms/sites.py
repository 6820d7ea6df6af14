"""Where a network's channels can be scaled: found from one traced forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, final

import numpy as np
from torch import nn

from mpq._support.arrays import Array
from mpq.network.examples import Batch
from mpq.network.reparametrization import Scaling
from mpq.transforms.channel_rules import RULES
from mpq.transforms.channels import Axis, ChannelTrace, Group, Reader
from mpq.transforms.label_trace import FREE, Labels
from mpq.transforms.layer_rules import Rule
from mpq.transforms.parameter_views import run_under

Factors: TypeAlias = Array
"""``[n]`` positive factors of a site's channels."""


@final
@dataclass(frozen=True, eq=False)
class Site:
    """Channels with factors of their own: what makes them is divided, what reads them multiplied.

    Args:
        size: How many channels.
        members: Parameters that make the channels.
        readers: Layers that read them, in the order of the first call.
        is_free: ``[size]`` whether a channel's factor may be another than 1.
        is_layer: Whether a matrix or a kernel makes the channels, and no normalization.
        before: The kernel whose outputs a BatchNorm scales, where the site is that BatchNorm's.
    """

    size: int
    members: tuple[Axis, ...]
    readers: tuple[Reader, ...]
    is_free: "np.ndarray[tuple[int], np.dtype[np.bool_]]"
    is_layer: bool
    before: str = ""

    @property
    def name(self) -> str:
        """The parameter that makes the channels."""
        return self.members[0].parameter

    def changes(self, factors: Factors) -> tuple[Scaling, ...]:
        """What makes the channels is divided, what reads them multiplied.

        Args:
            factors: ``[size]``; 1 where the channel is not free.
        """
        divided = (_scaling(axis, 1 / factors) for axis in self.members)
        multiplied = (_scaling(reader.weight, factors) for reader in self.readers)
        return (*divided, *multiplied)


@final
@dataclass(frozen=True, eq=False)
class Sites:
    """What a forward pass showed.

    Args:
        sites: In the order in which their channels are made.
        why_not: Weight of a layer whose inputs cannot be scaled, and why.
        shared_biases: Biases of readers that something else reads as well.
    """

    sites: tuple[Site, ...]
    why_not: Mapping[str, str]
    shared_biases: frozenset[str] = frozenset()

    @classmethod
    def of(cls, module: nn.Module, batch: Batch, rules: Mapping[str, Rule] = RULES) -> "Sites":
        """Runs one batch.

        Args:
            module: In evaluation mode; left as found.
            batch: One or two examples: all tensors of the pass are held.
            rules: What operations do to channels; those of factors, where nothing else is said.
        """
        trace = ChannelTrace(module, rules)
        trace.finish(run_under(trace, module, batch))
        unreached = [name for name, _ in module.named_parameters() if not trace.uses(name)]
        if unreached:  # what it reads of other examples nobody has followed
            why = f"the traced examples do not reach {unreached[0]}, which may read what is scaled"
            return cls((), dict.fromkeys(trace.layers, why))
        sites = tuple(site for site in map(_site, trace.groups.values()) if site is not None)
        read = {reader.weight.parameter for site in sites for reader in site.readers}
        left = [name for name in trace.layers if name not in read]
        shared = _shared_biases(sites, trace)
        return cls(sites, {name: _reason(name, trace) for name in left}, shared)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Weights of the layers whose inputs can be scaled."""
        found = (reader.weight.parameter for site in self.sites for reader in site.readers)
        return tuple(dict.fromkeys(found))


def merged(changes: Sequence[Scaling]) -> tuple[Scaling, ...]:
    """Scalings of one axis of one parameter as one: they commute."""
    found: dict[tuple[str, int], Array] = {}
    for change in changes:
        key = (change.parameter, change.axis)
        found[key] = found.get(key, np.ones(1)) * change.factors.astype(np.float64)
    return tuple(Scaling(p, a, v.astype(np.float32)) for (p, a), v in found.items())


def by_label(values: Array, labels: Labels) -> Array:
    """``[n]`` the value of each label; 1 of ``FREE``."""
    index = np.array(labels)
    return np.where(index == FREE, 1.0, values[np.maximum(index, 0)])


def largest_by_label(values: Array, labels: Labels, size: int) -> Array:
    """``[size]`` the largest of the values that have each label; 0 where none has."""
    found, index = np.zeros(size), np.array(labels)
    known = index != FREE
    np.maximum.at(found, index[known], values[known])
    return found


def _shared_biases(sites: Sequence[Site], trace: ChannelTrace) -> frozenset[str]:
    readers = (reader for site in sites for reader in site.readers if reader.bias)
    return frozenset(
        r.bias for r in readers if trace.num_uses(r.bias) != trace.num_uses(r.weight.parameter)
    )


def _scaling(axis: Axis, factors: Factors) -> Scaling:
    values = by_label(factors, axis.labels).astype(np.float32)
    return Scaling(axis.parameter, axis.axis, values)


def _site(group: Group) -> Site | None:
    met = {channel for reader in group.readers for channel in reader.inputs} - {FREE}
    is_free = np.array([c in met and c not in group.dead for c in range(group.size)], dtype=bool)
    free = set(np.flatnonzero(is_free).tolist())
    readers = tuple(r for r in group.readers if free.intersection(r.inputs))
    if not readers:
        return None
    return Site(group.size, group.members, readers, is_free, group.is_layer, group.before)


def _reason(name: str, trace: ChannelTrace) -> str:
    for group in trace.groups.values():
        if any(reader.weight.parameter == name for reader in group.readers) and group.dead:
            maker = group.members[0].parameter
            return f"reads channels of {maker}, of which one {next(iter(group.dead.values()))}"
    ended = (w for g in trace.groups.values() for w in g.dead.values())
    return trace.unread.get(name) or next(ended, "reads channels that others mix up")
