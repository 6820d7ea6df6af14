"""What transformations did to a network's parameters: data that goes with an assignment.

Loads no torch, as assignments do not. ``mpq.network.reparametrized`` applies it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, Final, Literal, Self, TypeAlias, cast, final, get_args

import numpy as np

from mpq._support.json_object import quoted
from mpq._support.names import for_people
from mpq.errors import FileFormatError

TRANSFORMS_FILE: Final = "transforms.safetensors"
"""Beside assignment.json."""
Kind: TypeAlias = Literal["scale", "unit", "shift", "rotate"]
Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"
_MATRIX: Final = "matrix"


@final
@dataclass(frozen=True, eq=False)
class Change:
    """What is done to one parameter along one of its axes, of ``n`` entries.

    Args:
        parameter: Its name in the model without wrappers, as ``named_parameters`` has it.
        kind: ``scale`` multiplies entry ``i`` with ``values[i]``; ``unit`` does as well, and what
            comes out has to be ones; ``shift`` adds ``values[i]``; ``rotate`` multiplies every
            ``d`` consecutive entries, as a row, with the orthogonal ``values``.
        axis: Of the parameter.
        values: ``[n]``, or ``[d, d]`` where ``d`` divides ``n``; float32, finite.
    """

    parameter: str
    kind: Kind
    axis: int
    values: Floats

    def why_not(self, shape: tuple[int, ...]) -> str:
        """Why it cannot be done to a parameter of some shape; empty: it can."""
        if self.axis >= len(shape):
            return f"has {len(shape)} axes, and the transformation is along axis {self.axis}"
        count, size = shape[self.axis], len(self.values)
        fits = size > 0 and count % size == 0 if self.kind == "rotate" else count == size
        return "" if fits else f"has {count} entries along axis {self.axis}, not {size}"


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
        """As a file in the format of safetensors.

        A change is the tensor ``<place> <kind> <axis> <parameter>``. Of a rotation it holds the
        number of its matrix, as many parameters are rotated by one: ``matrix <number>``.
        """
        from safetensors.numpy import save

        tensors: dict[str, np.ndarray[Any, Any]] = {}
        matrices: dict[bytes, int] = {}
        for place, change in enumerate(self.changes):
            values = np.ascontiguousarray(change.values)
            if change.kind == "rotate":
                number = matrices.setdefault(values.tobytes(), len(matrices))
                tensors[f"{_MATRIX} {number}"] = values
                values = np.array([number], dtype=np.int64)
            tensors[f"{place:06d} {change.kind} {change.axis} {change.parameter}"] = values
        return bytes(save(tensors))

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
        if sha256(content).hexdigest() != stated["sha256"]:
            raise FileFormatError(
                "the transformations are not those that the assignment was written with (their "
                "SHA-256 is another): copy all files of one run"
            )
        changes = _changes(content)
        if len(changes) != stated["num_changes"]:
            raise FileFormatError(
                f"{TRANSFORMS_FILE} has {len(changes)} changes, and the assignment speaks of "
                f"{stated['num_changes']}"
            )
        return cls(tuple(stated["transforms"]), changes)


def _changes(content: bytes) -> tuple[Change, ...]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(content)
    except SafetensorError as error:
        raise FileFormatError(f"not a safetensors file: {for_people(str(error))}") from error
    keys = sorted(key for key in tensors if not key.startswith(f"{_MATRIX} "))
    return tuple(_change(key, tensors) for key in keys)


def _change(key: str, tensors: "Mapping[str, np.ndarray[Any, Any]]") -> Change:
    parts = key.split(" ", 3)
    if len(parts) < 4 or parts[1] not in get_args(Kind) or not parts[2].isdecimal():
        raise FileFormatError(f"{TRANSFORMS_FILE}: {quoted(key)} is no change of a parameter")
    _, kind, axis, parameter = parts
    values = tensors[key]
    if kind == "rotate":
        named = f"{_MATRIX} {int(values.reshape(-1)[0])}"
        if named not in tensors:
            raise FileFormatError(f"{TRANSFORMS_FILE} lacks {quoted(named)}")
        values = tensors[named]
    is_shaped = values.ndim == (2 if kind == "rotate" else 1) and len(set(values.shape)) == 1
    if values.dtype != np.float32 or not is_shaped or not np.isfinite(values).all():
        raise FileFormatError(
            f"{TRANSFORMS_FILE}: {quoted(key)} is no {'matrix' if kind == 'rotate' else 'vector'} "
            "of finite float32 numbers"
        )
    return Change(parameter, cast(Kind, kind), int(axis), values)
