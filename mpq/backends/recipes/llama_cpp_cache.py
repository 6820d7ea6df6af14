"""llama.cpp: the types of its key-value cache, which it is told when it starts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, final

from mpq.backends._base import HELD
from mpq.backends.recipes._base import Recipe, commented
from mpq.errors import PrecisionError
from mpq.network.layer import CACHES, UNROTATED_KEYS
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import ORIGINAL, Precision

TYPES: Final = {
    "a8d": "q8_0", "a8sd": "q8_0", "a5d": "q5_1", "a5sd": "q5_0", "a4d": "q4_1", "a4sd": "q4_0",
    "a16": "f16", "abf16": "bf16",
}  # fmt: skip
"""A cache's format to the type with as many bits, with or without a minimum."""
OPTIONS: Final = {"k_cache": "--cache-type-k", "v_cache": "--cache-type-v"}


@final
@dataclass(frozen=True)
class LlamaCppCache(Recipe):
    """Options of ``llama-server`` and ``llama-cli``; weights are those of a GGUF file."""

    name: ClassVar[str] = "llama-cpp-cache"
    summary: ClassVar[str] = (
        "a recipe for llama.cpp: types of keys and values, options; not our codes"
    )
    file: ClassVar[str] = "llama-cpp-cache.txt"
    caches: ClassVar[str] = HELD
    note: ClassVar[str] = (
        "types of llama.cpp with as many bits, not the codes that were searched: it has a scale "
        "for every 32 numbers, where the search had one for a token of a head, and keeps no "
        "tokens as they came; not run here, measure what it makes"
    )

    def refusal(self, layer: AssignedLayer) -> str:
        """See ``Recipe.refusal``."""
        if layer.kind not in CACHES:
            return "it is told of key-value caches alone: weights are those of a GGUF file"
        if layer.kind == UNROTATED_KEYS:
            return "its cache holds keys after their rotation: search without --kv-before-rotation"
        if spelled(layer.precision) in TYPES:
            return ""
        return f"its types are those of {', '.join(TYPES)}"

    def check(self, assignment: Assignment) -> list[AssignedLayer]:
        """See ``Recipe.check``: the caches, of each kind all or none, in one type.

        Weights may be what they are, and are no matter of the file.

        Raises:
            PrecisionError: If no cache is quantized, or some have another type than others.
        """
        caches = [x for x in assignment.layers if x.kind in CACHES]
        super().check(replace(assignment, layers=tuple(caches)))
        if all(x.precision == ORIGINAL for x in caches):
            raise PrecisionError(f"{self.name}: no key-value cache is quantized (--kv-cache)")
        for kind in CACHES:
            found = {x.precision: x.name for x in caches if x.kind == kind}
            if len(found) > 1:
                one, other, *_ = found.values()
                raise PrecisionError(
                    f"{self.name} has one type for all keys and one for all values, and {one!r} "
                    f"and {other!r} differ: search with --tie '*.k_cache' --tie '*.v_cache'"
                )
        return [x for x in caches if x.precision != ORIGINAL]

    def text(self, layers: Sequence[AssignedLayer], note: str) -> str:
        """See ``Recipe.text``."""
        types = {OPTIONS[x.kind]: TYPES[spelled(x.precision)] for x in layers}
        options = " ".join(f"{option} {held}" for option, held in types.items())
        return f"{commented(note)}llama-server -m model.gguf --flash-attn on {options}\n"


def spelled(precision: Precision) -> str:
    """The format of a cache, as it is given."""
    return str(precision).removeprefix("w32")
