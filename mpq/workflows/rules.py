"""Which layers are quantized, and what a solver may not choose freely.

Loads no torch: the command line's options are made of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, TypeVar, final

from mpq._support.names import shortened
from mpq.errors import InputError
from mpq.network.patterns import Pattern, check_pattern
from mpq.quantization.precision import Precision

Value = TypeVar("Value")
Spelled: TypeAlias = str | Precision
"""A precision, or how it is written."""
Pairs: TypeAlias = Mapping[Any, Value] | Sequence[tuple[Pattern, Value]]
"""Something for every layer that a pattern matches; a later pattern overrides an earlier one.

Keys are patterns; to a type checker a ``dict[str, ...]`` would be no mapping of them.
"""


@final
@dataclass(frozen=True, eq=False)
class Rules:
    """Which layers are quantized, and what the solver may not choose freely.

    A layer is named by a glob (``"blocks.*"``) or by a predicate ``(name, module) -> bool``, which
    is given the module of mpq's own copy: it has the model's parameters, BatchNorm is folded.

    Args:
        include: Only layers that one of these matches are quantized. Empty: all.
        exclude: Layers that stay as they are, at any precision; ``weight_bytes`` counts them so.
        fix: Pattern to the precision of all layers that it matches: a mapping or pairs.
        allow: Pattern to the candidates of all layers that it matches: a mapping or pairs.
        tie: All layers that one of these matches share a precision.
        find_ties: Whether layers that read one tensor share a precision.
        fold: Whether BatchNorm is folded into the convolution before it.
        ends: Precision of the first and of the last layer in the order of their first calls, where
            ``fix`` gives them none; ``None``: they are chosen as all are.
        tie_blocks: Whether the layers of a block, an entry of a list of modules, share a precision.
        tie_inner: Whether all layers but the first and the last share a precision.

    Raises:
        InputError: If a pattern is neither a glob nor a predicate.
        PrecisionError: If a precision is misspelled.
    """

    include: Sequence[Pattern] = ()
    exclude: Sequence[Pattern] = ()
    fix: Pairs[Spelled] = ()
    allow: Pairs[Sequence[Spelled]] = ()
    tie: Sequence[Pattern] = ()
    find_ties: bool = True
    fold: bool = True
    ends: Spelled | None = None
    tie_blocks: bool = False
    tie_inner: bool = False

    def __post_init__(self) -> None:
        several = {"include": self.include, "exclude": self.exclude, "tie": self.tie}
        for rule, patterns in several.items():
            # A text is a sequence too: of globs of one letter each.
            if isinstance(patterns, str) or not isinstance(patterns, Sequence):
                raise InputError(
                    f"{rule} takes a list of globs or predicates; got {patterns!r}: write "
                    f"{rule}=[{patterns!r}]"
                )
            for pattern in patterns:
                check_pattern(pattern, rule)
        # Reading the pairs refuses misspelled precisions as well.
        _ = self.fixed_ends
        for rule, pairs in (("fix", self.fixed), ("allow", self.allowed)):
            for pattern, _ in pairs:
                check_pattern(pattern, rule)

    @property
    def has_ties(self) -> bool:
        """Whether layers share a precision beyond what is found to read one tensor."""
        return bool(self.tie) or self.tie_blocks or self.tie_inner

    @cached_property
    def fixed(self) -> tuple[tuple[Pattern, Precision], ...]:
        """Pairs of ``fix``, read."""
        pairs = _pairs("fix", self.fix)
        return tuple((pattern, read_precisions("fix", [value])[0]) for pattern, value in pairs)

    @cached_property
    def fixed_ends(self) -> Precision | None:
        """``ends``, read."""
        return None if self.ends is None else read_precisions("ends", [self.ends])[0]

    @cached_property
    def allowed(self) -> tuple[tuple[Pattern, tuple[Precision, ...]], ...]:
        """Pairs of ``allow``, read."""
        pairs = _pairs("allow", self.allow)
        return tuple((pattern, read_precisions("allow", values)) for pattern, values in pairs)


def _precision(value: Spelled) -> Precision:
    return value if isinstance(value, Precision) else Precision.parse(value)


def read_precisions(name: str, values: Iterable[Spelled]) -> tuple[Precision, ...]:
    """Precisions in their order, each once.

    Args:
        name: Of the option, for the message.
        values: Precisions, or how they are written.

    Raises:
        InputError: If it is one text.
        PrecisionError: If a precision is misspelled.
    """
    if isinstance(values, str):
        raise InputError(f"{name} takes a list of precisions; got {values!r}: write [{values!r}]")
    # Two columns of one table cannot be the same precision; the order given stays.
    found = tuple(dict.fromkeys(map(_precision, values)))
    for each in found:
        if each.weight.channels is not None:
            raise InputError(
                f"{name}: {shortened(str(each))} is of the channels of one weight, which a search "
                "finds with split (--split channels): name whole formats, such as w2 and w4"
            )
        if each.activation.steps is not None:
            raise InputError(
                f"{name}: {shortened(str(each))} has bits by cluster of steps, which a search "
                "finds with split (--split steps): name whole formats, such as w4a4 and w4a8"
            )
        if each.activation.channels is not None:
            raise InputError(
                f"{name}: {shortened(str(each))} is of the channels that one layer reads, which a "
                "search finds with split (--split activations:128): name whole formats, such as "
                "w4a4dg128 and w4a8dg128"
            )
    return found


def _pairs(rule: str, given: Pairs[Value]) -> list[tuple[Pattern, Value]]:
    """Items of a mapping, or pairs as they are."""
    pairs = list(given.items() if isinstance(given, Mapping) else given)
    if any(not isinstance(pair, tuple | list) or len(pair) != 2 for pair in pairs):
        raise InputError(f"{rule} maps globs or predicates to precisions; got {given!r}")
    return pairs
