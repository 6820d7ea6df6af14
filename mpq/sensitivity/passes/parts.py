"""Parts of an estimate, that several processes make of some of the batches each."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Final, Self, final

import numpy as np

from mpq._support.cache import Cache, checked
from mpq._support.shard import Shard
from mpq.errors import FileFormatError, InputError, MismatchError
from mpq.sensitivity.passes.checkpoint import (
    Batch,
    Checkpoint,
    Resumable,
    State,
    added,
    packed,
    state_of,
    unpacked,
)

SUFFIX: Final = ".part"
_WORDS: Final[Mapping[str, str]] = {
    "layers": "layers",
    "weights": "weights",
    "modules": "modules, their code or settings",
    "metric": "metric",
    "data": "examples",
    "first_example": "examples",
    "settings": "examples",
    "precisions": "candidates",
    "numerics": "target",
    "rounding": "codes of weights",
    "weight_range": "ranges of weights",
    "activation_ranges": "ranges of inputs",
    "answers": "answers to the first batch",
    "by": "estimator or options of it",
    "seed": "seed",
    "code": "version of mpq",
    "arithmetic": "version of torch, number of threads or kind of processor",
}
"""What a part of a key is, for people."""


@final
@dataclass(frozen=True, eq=False)
class Part:
    """What some of the batches gave.

    Args:
        key: All that determines the estimate, as checksums.
        shard: Which share of the batches.
        batches: The same, by index.
        num_batches: How many there are in all.
        state: What an estimator has after them.
        path: Where it is, for messages.
    """

    key: Mapping[str, str]
    shard: Shard
    batches: range
    num_batches: int
    state: State
    path: Path

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a file.

        Raises:
            FileFormatError: If it is none of a part, or damaged.
        """
        try:
            content = checked(path.read_bytes())
        except OSError as error:
            raise FileFormatError(f"cannot read the part {path}: {error.strerror}") from error
        if content is None:
            raise FileFormatError(
                f"{path} is no part of an estimate, or damaged: make it again (--shard)"
            )
        state = unpacked(content)
        if "part" not in state:
            raise FileFormatError(f"{path} is a kept file of mpq, but no part of an estimate")
        told = json.loads(str(state.pop("part")))
        first, end = told["batches"]
        shard = Shard.parse(told["shard"])
        return cls(told["key"], shard, range(first, end), told["num_batches"], state, path)

    def save(self, cache: Cache) -> None:
        """Into its file.

        Raises:
            OutputError: If it cannot be written: nothing else is left of the work.
        """
        told = {
            "key": dict(self.key),
            "shard": str(self.shard),
            "batches": [self.batches.start, self.batches.stop],
            "num_batches": self.num_batches,
        }
        cache.must_write(self.path.name, packed({**self.state, "part": np.array(json.dumps(told))}))


def part_name(key: str, shard: Shard) -> str:
    """Of a part's file, beside others of the same estimate."""
    return f"{key}.{shard.number}of{shard.count}{SUFFIX}"


def parts_of(folder: Path, name: str) -> list[Path]:
    """Files of an estimate's parts in a folder."""
    return sorted(folder.glob(f"{name}.*of*{SUFFIX}"))


@final
class OwnShare:
    """A ``Division``: one share of the batches, whose part is written when they are done.

    Args:
        cache: Where the part will be; what there is of it is kept there, too.
        name: A checksum of the key.
        key: All that determines the estimate.
        shard: Which share.
        num_batches: How many batches there are in all.

    Raises:
        InputError: If there are fewer batches than shares.
    """

    def __init__(
        self, cache: Cache, name: str, key: Mapping[str, str], shard: Shard, num_batches: int
    ) -> None:
        self._cache, self._key, self._shard = cache, key, shard
        self._span = shard.span(num_batches, "batches")
        self._num_batches = num_batches
        self.path = cache.folder / part_name(name, shard)
        self._checkpoint = Checkpoint(cache, f"{self.path.name}ial")

    def left(self, batches: Iterable[Batch], parts: Mapping[str, Resumable]) -> Iterator[Batch]:
        """See ``Division``."""
        own = islice(batches, self._span.start, self._span.stop)
        yield from self._checkpoint.left(own, parts)
        found = self._key, self._shard, self._span, self._num_batches, state_of(parts)
        Part(*found, self.path).save(self._cache)
        self._checkpoint.remove()


def whole(parts: Sequence[Part]) -> Part:
    """All batches' state, from parts that have each of them once.

    Raises:
        MismatchError: If parts are of different estimates.
        InputError: If a batch is in two parts or in none.
    """
    first, *others = ordered = sorted(parts, key=lambda part: (part.batches.start, part.path))
    for other in others:
        _check_same(first, other)
    for one, after in pairwise(ordered):
        if after.batches.start < one.batches.stop:
            raise InputError(
                f"{one.path.name} and {after.path.name} overlap: batches {_told(one.batches)} and "
                f"{_told(after.batches)} of {one.num_batches}; give parts of one way to split"
            )
    missing = _missing(ordered)
    if missing:
        shards = ", ".join(f"{shard} (--shard {shard})" for shard in missing)
        raise InputError(
            f"of the estimate in {first.path.parent} "
            f"{'part' if len(missing) == 1 else 'parts'} {shards} "
            f"{'is' if len(missing) == 1 else 'are'} missing: make what is missing first"
        )
    state = added([part.state for part in ordered])
    return Part(
        first.key, Shard(1, 1), range(first.num_batches), first.num_batches, state, first.path
    )


def _check_same(one: Part, other: Part) -> None:
    names = dict.fromkeys((*one.key, *other.key))
    differing = [name for name in names if one.key.get(name) != other.key.get(name)]
    if differing:
        words = ", ".join(dict.fromkeys(_WORDS.get(name, name) for name in differing))
        raise MismatchError(
            f"{one.path} and {other.path} are parts of different estimates (other {words}): merge "
            "parts of the same command, made by the same version on the same kind of machine"
        )
    if one.state.keys() != other.state.keys():
        raise MismatchError(
            f"{one.path} and {other.path} are of different estimators: one of them met a network "
            "without gradients and measured"
        )


def _missing(parts: Sequence[Part]) -> list[Shard]:
    """Shares, in the way the parts were split, whose batches no part has."""
    seen = {index for part in parts for index in part.batches}
    num_batches, count = parts[0].num_batches, max(part.shard.count for part in parts)
    shards = (Shard(count, number) for number in range(1, count + 1))
    return [s for s in shards if not seen.issuperset(s.span(num_batches, "batches"))]


def _told(batches: range) -> str:
    return f"{batches.start + 1} to {batches.stop}"
