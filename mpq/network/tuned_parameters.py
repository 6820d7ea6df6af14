"""What tuning did to vectors of a network (biases, norms): data that goes with an assignment.

Loads no torch, as assignments do not. ``mpq.network.with_tuned`` puts it into a model.
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

TUNED_FILE: Final = "tuned.safetensors"
"""Beside assignment.json."""
Floats: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
_PARTS: Final = ("original", "tuned")
_DTYPES: Final = ("float32", "float64")
_SAME: Final = 1e-2
"""How far a vector may be from what was tuned, relative to its length: bfloat16 moves it by 2e-3,
another checkpoint by more."""


@final
@dataclass(frozen=True, eq=False)
class TunedParameter:
    """One vector before and after.

    Args:
        original: ``[n]`` float32 (of a model in float64, float64), finite: what was tuned.
        tuned: ``[n]`` of the same dtype: what takes its place.
    """

    original: Floats
    tuned: Floats

    def why_not(self, values: Floats) -> str:
        """Why it is not this parameter that was tuned; empty: it is."""
        if values.shape != self.original.shape:
            return f"has {values.shape}, and a vector of {self.original.shape} was tuned"
        moved, length = (
            float(np.linalg.norm(x.astype(np.float64))) for x in (values - self.original, values)
        )
        return "" if moved <= _SAME * length else "has other numbers than those that were tuned"

    @property
    def is_valid(self) -> bool:
        """Two finite vectors of one shape and dtype."""
        both = (self.original, self.tuned)
        return (
            self.original.shape == self.tuned.shape
            and self.original.dtype == self.tuned.dtype
            and all(x.ndim == 1 and str(x.dtype) in _DTYPES for x in both)
            and all(bool(np.isfinite(x).all()) for x in both)
        )


@final
@dataclass(frozen=True, eq=False)
class TunedParameters:
    """Vectors of a network that have other numbers than in its checkpoint.

    Args:
        by_name: Name in the model without wrappers, as ``named_parameters`` has it, to the vector;
            a transformation (``Reparametrization``) has been done before.
    """

    by_name: Mapping[str, TunedParameter] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TunedParameters):
            return NotImplemented
        return self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def to_dict(self) -> dict[str, Any]:
        """What an assignment's JSON says of it."""
        return {"num_parameters": len(self.by_name), "file": TUNED_FILE, "sha256": self.sha256}

    @cached_property
    def content(self) -> bytes:
        """As a file in the format of safetensors: ``original <parameter>``, ``tuned <...>``."""
        from safetensors.numpy import save

        tensors = {
            f"{part} {name}": np.ascontiguousarray(getattr(vector, part))
            for name, vector in self.by_name.items()
            for part in _PARTS
        }
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
        vectors = _vectors(stated_tensors(content, stated["sha256"], "tuned parameters"))
        if len(vectors) != stated["num_parameters"]:
            raise FileFormatError(
                f"{TUNED_FILE} has {len(vectors)} parameters, and the assignment speaks of "
                f"{stated['num_parameters']}"
            )
        return cls(vectors)


def _vectors(tensors: "Mapping[str, np.ndarray[Any, Any]]") -> dict[str, TunedParameter]:
    found = {}
    for name in sorted({key.partition(" ")[2] for key in tensors}):
        parts = [tensors.get(f"{part} {name}") for part in _PARTS]
        vector = None if any(x is None for x in parts) else TunedParameter(*parts)  # type: ignore[arg-type]
        if vector is None or not vector.is_valid:
            raise FileFormatError(
                f"{TUNED_FILE}: {quoted(name)} is no pair of finite float32 vectors of one length"
            )
        found[name] = vector
    return found
