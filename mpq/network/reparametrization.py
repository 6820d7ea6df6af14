"""What transformations did to a network's parameters: data that goes with an assignment.

Loads no torch, as assignments do not. ``mpq.network.reparametrized`` applies it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, Final, Self, TypeAlias, final

import numpy as np

from mpq._support.json_object import quoted
from mpq._support.names import for_people
from mpq.errors import FileFormatError

TRANSFORMS_FILE: Final = "transforms.safetensors"
"""Beside assignment.json."""
Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"
_SCALE: Final = "scale"
"""What is done, as keys of the file say it."""


@final
@dataclass(frozen=True, eq=False)
class Change:
    """Factors of one parameter along one of its axes, of ``n`` entries.

    Args:
        parameter: Its name in the model without wrappers, as ``named_parameters`` has it.
        axis: Of the parameter.
        factors: ``[n]`` that its entries are multiplied with; float32, finite, positive.
    """

    parameter: str
    axis: int
    factors: Floats

    def why_not(self, shape: tuple[int, ...]) -> str:
        """Why it cannot be done to a parameter of some shape; empty: it can."""
        if self.axis >= len(shape):
            return f"has {len(shape)} axes, and the transformation is along axis {self.axis}"
        count, size = shape[self.axis], len(self.factors)
        return "" if count == size else f"has {count} entries along axis {self.axis}, not {size}"


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
        """As a file in the format of safetensors: ``<place> scale <axis> <parameter>``."""
        from safetensors.numpy import save

        tensors = {
            f"{place:06d} {_SCALE} {change.axis} {change.parameter}": change.factors
            for place, change in enumerate(self.changes)
        }
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
    return tuple(_change(key, tensors[key]) for key in sorted(tensors))


def _change(key: str, factors: "np.ndarray[Any, Any]") -> Change:
    parts = key.split(" ", 3)
    if len(parts) < 4 or parts[1] != _SCALE or not parts[2].isdecimal():
        raise FileFormatError(f"{TRANSFORMS_FILE}: {quoted(key)} is no change of a parameter")
    is_finite = factors.dtype == np.float32 and bool(np.isfinite(factors).all())
    if not is_finite or factors.ndim != 1 or not bool((factors > 0).all()):
        raise FileFormatError(
            f"{TRANSFORMS_FILE}: {quoted(key)} is no vector of positive float32 numbers"
        )
    return Change(parts[3], int(parts[2]), factors)
