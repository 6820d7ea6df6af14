"""The key-value cache of attention: what it may be stored in, and how much of it there is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, final

from mpq._support.bounds import check_whole
from mpq.errors import InputError, PrecisionError
from mpq.network.kept_tokens import CacheLayers, KeptTokens
from mpq.quantization.precision import ORIGINAL_WEIGHTS, Precision
from mpq.quantization.tensor_format import Granularity

DEFAULT_CANDIDATES: Final = ("a8d", "a6d", "a5d", "a4d", "a3d", "a2d")
"""A scale for every token of every head."""


@final
@dataclass(frozen=True)
class KVCache:
    """What keys and values of earlier tokens may be stored in, and how many there are.

    Args:
        tokens: Length of the context that the cache is priced for.
        candidates: Formats that keys or values of an attention may take, spelled as inputs are:
            ``a4d`` has a scale for every token of every head, ``a4c`` one for every channel and
            ``a8`` one for all, which are calibrated; ``a16`` is fp16, ``a32`` as they came.
        batch_size: Sequences that the cache is priced for.
        first: First tokens whose keys and values stay as they came.
        window: Last tokens whose keys and values stay as they came, see ``KeptTokens``.
        before_rotation: Whether keys are held as they were before positions were rotated into them
            (see ``Rotation``), and rotated whenever they are read.

    Raises:
        InputError: If a number is too small, or there is no candidate.
        PrecisionError: If a candidate is misspelled, or none that a cache can have.
    """

    tokens: int
    candidates: Sequence[str | Precision] = DEFAULT_CANDIDATES
    batch_size: int = 1
    first: int = 0
    window: int = 0
    before_rotation: bool = False

    def __post_init__(self) -> None:
        for name, count in (("tokens", self.tokens), ("batch_size", self.batch_size)):
            check_whole(name, count)
            if count < 1:
                raise InputError(f"a key-value cache has at least 1 of {name}; got {count}")
        if isinstance(self.candidates, str):
            raise InputError(
                f"candidates takes a list of formats; got {self.candidates!r}: write "
                f"[{self.candidates!r}]"
            )
        # Read at once, for their refusals.
        if not self.precisions:
            raise InputError("a key-value cache has candidates such as a8d and a4d; got none")
        _ = self.kept

    @cached_property
    def precisions(self) -> tuple[Precision, ...]:
        """The candidates, read, each once: those of a layer without weights."""
        return tuple(dict.fromkeys(map(_precision, self.candidates)))

    @cached_property
    def kept(self) -> KeptTokens:
        """Which tokens stay as they came."""
        return KeptTokens(self.first, self.window)

    @property
    def layers(self) -> CacheLayers:
        """What a network is to find."""
        return CacheLayers(self.kept, self.before_rotation)


def _precision(value: str | Precision) -> Precision:
    text = str(value).strip()
    found = Precision.parse(f"w{ORIGINAL_WEIGHTS}{text}" if text.startswith("a") else text)
    if not found.weight.is_exact:
        raise PrecisionError(f"{text!r}: a key-value cache has no weights; write it as a4d")
    if found.activation.granularity is Granularity.FIRST_APART:
        raise PrecisionError(
            f"{text!r}: a cache keeps first tokens as they came: say how many (first, --kv-first)"
        )
    if found.activation.granularity is Granularity.TOKEN_BLOCK:
        raise PrecisionError(
            f"{text!r}: a cache has a scale for every head's token: leave "
            f"g{found.activation.group_size} out"
        )
    if found.activation.number.is_for_inputs:
        raise PrecisionError(f"{text!r}: keys and values have either sign, and no such codes")
    return found
