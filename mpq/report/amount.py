"""A number with its unit, for people."""

from typing import Final

_PREFIXES: Final = {0: "", -1: "m", -2: "µ", -3: "n", -4: "p"}


def amount(value: float, unit: str) -> str:
    """A number with its unit, four digits, for people.

    >>> amount(0.0046, "seconds"), amount(37856, "bytes"), amount(4.5, "bits")
    ('4.600 ms', '36.97 KiB', '4.500 bits')
    """
    if value != value:
        return "cannot run"
    if unit == "bytes":
        # Powers of two, as the memories of small devices and limits in KiB are.
        power = next((p for p in (2, 1) if abs(value) >= 1024**p), 0)
        return f"{value / 1024**power:.4g} {('B', 'KiB', 'MiB')[power]}"
    if unit in ("seconds", "joules"):
        # A 0 keeps the whole unit: "0 ps" would look like a measurement.
        power = next((p for p in (0, -1, -2, -3) if abs(value) >= 1000**p), -4 if value else 0)
        return f"{value / 1000.0**power:#.4g} {_PREFIXES[power]}{'s' if unit == 'seconds' else 'J'}"
    return f"{value:.3f} {unit}" if unit == "bits" else f"{value:.4g} {unit}"
