"""Groups of layers by patterns of their names, each with a word that says what it is judged by."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Self, final

from mpq.errors import InputError


@final
@dataclass(frozen=True)
class LayerGroups:
    """A layer is in the first group of which a pattern fits its name.

    Args:
        patterns: Of each group, globs such as ``*attn2*``.
        metrics: Of each group; empty where none is named.

    >>> groups = LayerGroups.parse("*ff*|*attn2*=ssim;*=decibels")
    >>> groups.metrics, groups.of(["mid.ff.0", "stem", "mid.attn2.to_q"])
    (('ssim', 'decibels'), [0, 1, 0])
    """

    patterns: tuple[tuple[str, ...], ...]
    metrics: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads groups with ``;`` between them, patterns with ``|``, and a metric behind ``=``.

        Raises:
            InputError: If a group has no pattern.
        """
        parts = [part.strip().partition("=") for part in text.split(";")]
        patterns = tuple(tuple(x.strip() for x in part[0].split("|")) for part in parts)
        if not all(all(group) for group in patterns):
            raise InputError(
                f"groups of layers are written like '*ff*|*attn2*=ssim;*=decibels'; got {text!r}"
            )
        return cls(patterns, tuple(part[2].strip() for part in parts))

    def of(self, layers: Sequence[str]) -> list[int]:
        """``[L]`` index of every layer's group.

        Raises:
            InputError: If a layer is in none, or a group has no layer.
        """
        found = [self._group(name) for name in layers]
        for index, group in enumerate(self.patterns):
            if index not in found:
                raise InputError(
                    f"the group of layers {'|'.join(group)!r} has no layer of this network, whose "
                    f"first are {', '.join(layers[:4])}: give patterns of its names (groups=...)"
                )
        return found

    def _group(self, name: str) -> int:
        for index, group in enumerate(self.patterns):
            if any(fnmatchcase(name, pattern) for pattern in group):
                return index
        raise InputError(f"layer {name!r} is in no group: let the last one be '*'")
