"""Which tokens a key-value cache keeps as they came. Loads no torch."""

from dataclasses import dataclass
from typing import Final, final

from mpq._support.bounds import check_whole
from mpq.errors import InputError


@final
@dataclass(frozen=True)
class KeptTokens:
    """Which tokens' keys and values a cache keeps as they came.

    The first ones, which much attention goes to in many language models whatever they say (Xiao et
    al. 2023, arXiv:2309.17453; kept so by KVQuant, Hooper et al. 2024, arXiv:2401.18079), and a
    window of the last ones, that of the query among them (KIVI, Liu et al. 2024, arXiv:2402.02750).

    Args:
        first: How many at the start of the cache, padding included.
        window: How many at its end: a token is rounded when as many later ones are there.

    Raises:
        InputError: If a number is below 0 or not whole.
    """

    first: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        for name, count in (("first", self.first), ("window", self.window)):
            check_whole(name, count)
            if count < 0:
                raise InputError(f"tokens that a cache keeps are 0 or more; got {name}={count}")


KEPT_NONE: Final = KeptTokens()
"""All tokens are rounded."""


@final
@dataclass(frozen=True)
class CacheLayers:
    """Key-value caches that become layers of a network.

    Args:
        tokens: Which tokens stay as they came.
        before_rotation: Whether keys are held as they were before positions were rotated into them.
    """

    tokens: KeptTokens = KEPT_NONE
    before_rotation: bool = False
