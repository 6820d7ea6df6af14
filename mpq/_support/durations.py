"""Times as people write them."""

import re
from typing import Final

from mpq.errors import InputError

_UNITS: Final = {"s": 1.0, "min": 60.0, "h": 3600.0}
_FORM: Final = re.compile(r"(?P<number>\d+\.?\d*|\.\d+)\s*(?P<unit>s|min|h)")


def seconds_of(text: str) -> float:
    """Seconds of ``90s``, ``10min`` or ``1.5h``.

    >>> seconds_of("10min")
    600.0

    Raises:
        InputError: If it is nothing like that, or 0.
    """
    match = _FORM.fullmatch(text.strip())
    found = float(match["number"]) * _UNITS[match["unit"]] if match else 0.0
    if not found:
        raise InputError(f"{text!r} is not a time: write 90s, 10min or 1.5h")
    return found


def in_words(seconds: float) -> str:
    """For people.

    >>> in_words(5400.0), in_words(42.1)
    ('1.5 h', '42 s')
    """
    for unit in ("h", "min"):
        if seconds >= _UNITS[unit]:
            return f"{seconds / _UNITS[unit]:.2g} {unit}"
    return f"{seconds:.2g} s"
