"""What transformations did to a network's parameters: data that goes with an assignment.

Loads no torch, as assignments do not. ``mpq.network.reparametrized`` applies it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, Final, Self, TypeAlias, final

import numpy as np

from mpq._support.companion_content import stated_tensors
from mpq._support.json_object import quoted
from mpq.errors import FileFormatError

TRANSFORMS_FILE: Final = "transforms.safetensors"
"""Beside assignment.json."""
Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"
Doubles: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
_MATRIX: Final = "matrix"
"""What the keys of orthogonal matrices begin with; those of changes begin with a place."""


@final
@dataclass(frozen=True, eq=False)
class Orthogonal:
    """An orthogonal matrix, of which a Hadamard matrix takes a byte for each entry.

    Args:
        entries: ``[d, d]`` float64; or int8 of 1 and -1, which stand for a ``sqrt(d)``-th.
    """

    entries: "np.ndarray[Any, Any]"

    @property
    def size(self) -> int:
        """``d``."""
        return len(self.entries)

    @cached_property
    def matrix(self) -> Doubles:
        """``[d, d]``."""
        values: Doubles = self.entries.astype(np.float64)
        return values / np.sqrt(self.size) if self.entries.dtype == np.int8 else values


@final
@dataclass(frozen=True, eq=False)
class Scaling:
    """Factors of one parameter along one of its axes, of ``n`` entries.

    Args:
        parameter: Its name in the model without wrappers, as ``named_parameters`` has it.
        axis: Of the parameter.
        factors: ``[n]`` that its entries are multiplied with; float32, finite, none of them 0
            where the network is to stay the same.
    """

    parameter: str
    axis: int
    factors: Floats

    def why_not(self, shape: tuple[int, ...]) -> str:
        """Why it cannot be done to a parameter of some shape; empty: it can."""
        return _why_other_size(shape, self.axis, len(self.factors))


@final
@dataclass(frozen=True, eq=False)
class Addition:
    """Numbers that are added to a vector of ``n`` entries: a bias, a normalization's weight.

    Args:
        parameter: Its name, as in ``Scaling``.
        axis: Of the parameter.
        terms: ``[n]`` float64, finite.
    """

    parameter: str
    axis: int
    terms: Doubles

    def why_not(self, shape: tuple[int, ...]) -> str:
        """Why it cannot be done to a parameter of some shape; empty: it can."""
        return _why_other_size(shape, self.axis, len(self.terms))


@final
@dataclass(frozen=True, eq=False)
class Rotation:
    """Blocks of entries along an axis, each a row that is multiplied with an orthogonal matrix.

    Args:
        parameter: Its name, as in ``Scaling``.
        axis: Of the parameter.
        start: Of the first block.
        count: Of blocks, one behind the other: heads, or one for a whole stream.
        by: ``[d, d]``.
    """

    parameter: str
    axis: int
    start: int
    count: int
    by: Orthogonal

    def why_not(self, shape: tuple[int, ...]) -> str:
        """Why it cannot be done to a parameter of some shape; empty: it can."""
        end = self.start + self.count * self.by.size
        if self.axis < len(shape) and shape[self.axis] >= end:
            return ""
        return _why_other_size(shape, self.axis, end)


@final
@dataclass(frozen=True, eq=False)
class Untying:
    """A parameter that has several names, and memory of its own under one of them from now on.

    Args:
        parameter: That name, such as the head's. Made before all other changes.
        axis: 0; it has no meaning.
    """

    parameter: str
    axis: int = 0

    def why_not(self, _: tuple[int, ...]) -> str:
        """Empty: every parameter can be copied."""
        return ""


Change: TypeAlias = Scaling | Addition | Rotation | Untying
"""What is done to one parameter."""


def _why_other_size(shape: tuple[int, ...], axis: int, size: int) -> str:
    if axis >= len(shape):
        return f"has {len(shape)} axes, and the transformation is along axis {axis}"
    count = shape[axis]
    return "" if count == size else f"has {count} entries along axis {axis}, not {size}"


@final
@dataclass(frozen=True, eq=False)
class Reparametrization:
    """An exact reparametrization of a network: other parameters, the same function.

    Args:
        transforms: Those that are used, in order, as ``mpq.transforms.TRANSFORMS`` spells them.
        changes: In the order in which they are made.
    """

    transforms: tuple[str, ...]
    changes: tuple[Change, ...] = field(default_factory=tuple)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reparametrization):
            return NotImplemented
        return (self.transforms, self.sha256) == (other.transforms, other.sha256)

    def __hash__(self) -> int:
        return hash(self.sha256)

    def then(self, transform: str, changes: tuple[Change, ...]) -> Self:
        """The same, followed by another transformation's changes."""
        return type(self)((*self.transforms, transform), (*self.changes, *changes))

    def to_dict(self) -> dict[str, Any]:
        """What an assignment's JSON says of it."""
        return {
            "transforms": list(self.transforms),
            "num_changes": len(self.changes),
            "file": TRANSFORMS_FILE,
            "sha256": self.sha256,
        }

    @cached_property
    def content(self) -> bytes:
        """As a file in the format of safetensors: ``<place> <what> <axis> <parameter>``.

        ``scale`` has factors, ``add`` terms, ``rotate`` the numbers of its matrix, of its first
        entry and of its blocks; a matrix is there once, as ``matrix <number>``.
        """
        from safetensors.numpy import save

        rotations = (change for change in self.changes if isinstance(change, Rotation))
        matrices = list({id(change.by): change.by for change in rotations}.values())
        numbers = {id(matrix): number for number, matrix in enumerate(matrices)}
        tensors = {f"{_MATRIX} {i:06d}": matrix.entries for i, matrix in enumerate(matrices)}
        for place, change in enumerate(self.changes):
            what, value = _written(change, numbers)
            tensors[f"{place:06d} {what} {change.axis} {change.parameter}"] = value
        return bytes(save({key: np.ascontiguousarray(x) for key, x in tensors.items()}))

    @cached_property
    def sha256(self) -> str:
        """Of ``content``."""
        return sha256(self.content).hexdigest()

    @classmethod
    def from_content(cls, content: bytes, stated: Mapping[str, Any]) -> Self:
        """Inverse of ``content``.

        Args:
            content: Of the file.
            stated: What the assignment says of it: ``to_dict``.

        Raises:
            FileFormatError: If it is another file than the one that was written.
        """
        changes = _changes(stated_tensors(content, stated["sha256"], "transformations"))
        if len(changes) != stated["num_changes"]:
            raise FileFormatError(
                f"{TRANSFORMS_FILE} has {len(changes)} changes, and the assignment speaks of "
                f"{stated['num_changes']}"
            )
        return cls(tuple(stated["transforms"]), changes)


def _changes(tensors: "Mapping[str, np.ndarray[Any, Any]]") -> tuple[Change, ...]:
    matrices = {key: _matrix(key, x) for key, x in tensors.items() if key.startswith(_MATRIX)}
    places = sorted(tensors.keys() - matrices.keys())
    return tuple(_change(key, tensors[key], matrices) for key in places)


def _written(change: Change, numbers: Mapping[int, int]) -> "tuple[str, np.ndarray[Any, Any]]":
    """What a change is called in the file, and its numbers there."""
    if isinstance(change, Scaling):
        return "scale", change.factors
    if isinstance(change, Addition):
        return "add", change.terms
    if isinstance(change, Untying):
        return "untie", np.zeros(0)
    return "rotate", np.array([numbers[id(change.by)], change.start, change.count])


def _matrix(key: str, entries: "np.ndarray[Any, Any]") -> Orthogonal:
    is_square = entries.ndim == 2 and entries.shape[0] == entries.shape[1] > 0
    is_signs = entries.dtype == np.int8 and bool((np.abs(entries) == 1).all())
    is_finite = entries.dtype == np.float64 and bool(np.isfinite(entries).all())
    if not is_square or not (is_signs or is_finite):
        raise FileFormatError(
            f"{TRANSFORMS_FILE}: {quoted(key)} is no square matrix of signs or of float64 numbers"
        )
    return Orthogonal(entries)


def _change(key: str, value: "np.ndarray[Any, Any]", matrices: Mapping[str, Orthogonal]) -> Change:
    parts = key.split(" ", 3)
    kinds = ("scale", "add", "rotate", "untie")
    if len(parts) < 4 or parts[1] not in kinds or not parts[2].isdecimal():
        raise FileFormatError(f"{TRANSFORMS_FILE}: {quoted(key)} is no change of a parameter")
    _, what, axis, name = parts
    if what == "untie":
        return Untying(name)
    if what == "rotate":
        return _rotation(key, value, name, int(axis), matrices)
    dtype = np.dtype(np.float32 if what == "scale" else np.float64)
    is_finite = value.ndim == 1 and value.dtype == dtype and bool(np.isfinite(value).all())
    if not is_finite or (what == "scale" and bool((value == 0).any())):
        raise FileFormatError(
            f"{TRANSFORMS_FILE}: {quoted(key)} is no vector of {dtype} numbers"
            + (" other than 0" if what == "scale" else "")
        )
    return Scaling(name, int(axis), value) if what == "scale" else Addition(name, int(axis), value)


def _rotation(
    key: str,
    value: "np.ndarray[Any, Any]",
    name: str,
    axis: int,
    matrices: Mapping[str, Orthogonal],
) -> Rotation:
    is_known = value.dtype == np.int64 and value.shape == (3,) and bool((value >= 0).all())
    number, start, count = value.tolist() if is_known else (-1, 0, 0)
    matrix = matrices.get(f"{_MATRIX} {number:06d}")
    if matrix is None:
        raise FileFormatError(f"{TRANSFORMS_FILE}: {quoted(key)} names no matrix and its blocks")
    return Rotation(name, axis, start, count, matrix)
