"""Bounds of numbers that users write: what is absurd is refused before memory is taken for it."""

import functools
import os
from collections.abc import Mapping
from dataclasses import fields
from math import isnan
from numbers import Integral
from typing import Any, Final

from mpq._support.names import shortened
from mpq.errors import InputError

LARGEST_SEED: Final = 2**63 - 1
"""What torch and numpy both take."""
LARGEST: Final[Mapping[str, int]] = {
    "alternatives": 10**5,
    "batch_size": 10**6,
    "grid": 10**7,
    "num_bins": 10**6,
    "num_halvings": 10**5,
    "num_networks": 10**6,
    "num_probes": 10**6,
    "num_random": 10**7,
    "num_restarts": 10**7,
    "num_shrinks": 10**5,
    "num_trials": 10**7,
    "points": 10**5,
    "population_size": 10**6,
    "refine": 10**4,
    "rounds": 10**6,
    "seed": LARGEST_SEED,
}
"""Options whose number is memory or hours, and the most that anybody can mean by it."""
_LARGEST_OTHER: Final = 10**9


def number_of(text: str) -> float:
    """A number of a table, as spreadsheets write one; also ``nan`` and ``inf``.

    >>> number_of(" -1.5e3")
    -1500.0

    Raises:
        ValueError: If it is none, or only Python takes it for one (``1_0``, digits of other
            scripts): a typing error.
    """
    if "_" in text or not text.isascii():
        raise ValueError(f"could not convert string to float: {shortened(text)!r}")
    return float(text)


def check_whole(name: str, value: int, shown: str = "") -> int:
    """A whole number that is no more than its option can mean.

    Args:
        name: The option's; those that are not in ``LARGEST`` have a bound as well.
        value: What was given. Whether it may be 0 is for the option to say; a seed is not below 0.
        shown: How the message calls it, such as ``noise:batch_size``; default: its name.

    Raises:
        InputError: If it is more.
    """
    largest = LARGEST.get(name, _LARGEST_OTHER)
    if value > largest:
        raise InputError(f"{shown or name} is at most {largest}; got {_spelled(value)}")
    if value < (0 if name == "seed" else -_LARGEST_OTHER):
        raise InputError(f"{shown or name} is at least 0; got {_spelled(value)}")
    return value


class Bounded:
    """A dataclass with options, whose numbers are looked at when it is made, by text or in Python.

    What no option can mean comes first, as it cannot even be spelled; then its own
    ``__post_init__``, which has the better words; then the bounds of each option.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("__post_init__")
        if own is None:
            return

        @functools.wraps(own)
        def checking(self: Any) -> None:
            _check_fields(self, beyond=LARGEST_SEED)
            own(self)
            _check_fields(self)

        cls.__post_init__ = checking  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        _check_fields(self)


def _check_fields(part: Any, beyond: int = -1) -> None:
    """The bounds of those of a dataclass's numbers whose size is more than ``beyond``."""
    name = getattr(part, "name", type(part).__name__)
    for field in fields(part):
        value, shown = getattr(part, field.name, None), f"{name}:{field.name}"
        if isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) > beyond:
            check_whole(field.name, int(value), shown)
        elif isinstance(value, float) and beyond < 0:
            check_float(value, shown)


def check_float(value: float, shown: str) -> float:
    """A number that can be compared.

    Raises:
        InputError: If it is ``nan``.
    """
    if isnan(value):
        raise InputError(f"{shown} is a number; got nan")
    return value


def check_memory(what: str, num_bytes: int) -> None:
    """Refuses what does not fit into this machine's memory.

    Args:
        what: Such as ``noise: 64 examples of 3x32x32``.
        num_bytes: What it takes.

    Raises:
        InputError: If it is more; says how much, and how much there is.
    """
    there = machine_bytes()
    if num_bytes > there:
        raise InputError(
            f"{what} take {_gib(num_bytes)} of memory; this machine has {_gib(there)}: make fewer "
            "or smaller ones"
        )


def machine_bytes() -> int:
    """Memory of this machine; where the system does not say, more than any has."""
    names = getattr(os, "sysconf_names", {})  # Windows has none
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= names.keys():
        return 2**40
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gib(num_bytes: int) -> str:
    # By whole numbers: one of hundreds of digits is no float.
    return f"{_spelled(-(-num_bytes // 2**30))} GiB"


def _spelled(value: int) -> str:
    try:
        return shortened(str(value))
    except ValueError:  # Python refuses to spell them
        return "a number of thousands of digits"
