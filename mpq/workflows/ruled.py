"""What the user's rules say of which layers of a network."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from mpq.errors import InputError
from mpq.network.blocks import layers_by_block
from mpq.network.layer import merge_ties
from mpq.network.network import Network
from mpq.network.patterns import Pattern
from mpq.quantization.precision import Precision
from mpq.workflows.rules import Rules

Value = TypeVar("Value")


def by_layer(
    network: Network, pairs: Sequence[tuple[Pattern, Value]], option: str
) -> dict[str, Value]:
    """Patterns resolved to layer names; a later one overrides an earlier one."""
    return {name: value for pattern, value in pairs for name in network.matching(pattern, option)}


def fixed_ends(network: Network, rules: Rules) -> dict[str, Precision]:
    """The first and the last layer, where their precision is given."""
    given = rules.fixed_ends
    return {} if given is None else {network.layers[at].name: given for at in (0, -1)}


def check_fixed(
    fixed: Mapping[str, Precision], allowed: Mapping[str, tuple[Precision, ...]]
) -> None:
    """Refuses a fixed precision that is none of the layer's own candidates."""
    for name in fixed.keys() & allowed.keys():
        if fixed[name] not in allowed[name]:
            raise InputError(
                f"layer {name!r} is fixed at {fixed[name]} (--fix), which is not among its own "
                f"candidates {', '.join(map(str, allowed[name]))} (--allow): leave one of them out"
            )


def all_ties(network: Network, rules: Rules) -> tuple[tuple[str, ...], ...]:
    """Ties that the network has and those that were asked for, merged where they overlap."""
    found = network.ties if rules.find_ties else ()
    names = [layer.name for layer in network.layers]
    asked = [network.matching(pattern, "--tie") for pattern in rules.tie]
    blocks = layers_by_block(network.module, names) if rules.tie_blocks else []
    inner = [tuple(names[1:-1])] if rules.tie_inner and len(names) > 3 else []
    return merge_ties([*found, *asked, *map(tuple, blocks), *inner], names)
