"""Devices for a terminal: what they are, and every number with its source."""

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table

from mpq.cli.console import literal, new_table
from mpq.hardware_profiles import Profile, Roofline
from mpq.hardware_profiles.sourced import Sourced
from mpq.report.amount import amount

_MEMORIES = ("flash_bytes", "ram_bytes")


def devices_table(profiles: Iterable[Profile]) -> Table:
    """A row per device; of its numbers, how many have no better source than an assumption."""
    table = _table("device", "what it is", "model", "costs are", "assumed", "runs as", "memory")
    for profile in profiles:
        numbers = profile.numbers()
        _add(
            table,
            profile.name,
            profile.title,
            type(profile).__name__,
            profile.basis,
            f"{sum(map(is_assumed, numbers.values()))} of {len(numbers)}",
            ", ".join(profile.formats),
            _memory(numbers),
        )
    return table


def print_device(profile: Profile, console: Console) -> None:
    """What a device is, every number with its source, and what it runs."""
    console.print(
        # Titles and notes may have brackets, which are markup to rich unless it is told.
        f"{profile.name}: {profile.title}\n\nCosts are {profile.basis}. {profile.notes}\n",
        markup=False,
        highlight=False,
    )
    console.print(numbers_table(profile))
    console.print(formats_table(profile))


def device_json(profile: Profile) -> dict[str, object]:
    """What the table of devices says of one; a memory that is not known is ``None``."""
    numbers = profile.numbers()
    return {
        "name": profile.name,
        "title": profile.title,
        "model": type(profile).__name__,
        "basis": profile.basis,
        "num_numbers": len(numbers),
        "num_assumed": sum(map(is_assumed, numbers.values())),
        "formats": list(profile.formats),
        **{key: numbers[key].value if key in numbers else None for key in _MEMORIES},
    }


def numbers_json(profile: Profile) -> dict[str, dict[str, object]]:
    """Every number of a device with its source; the unit is in its name."""
    numbers = profile.numbers().items()
    return {name: {"value": number.value, "source": number.source} for name, number in numbers}


def is_assumed(number: Sourced) -> bool:
    """Whether a number's source says that it, or a part of it, is an assumption.

    >>> is_assumed(Sourced(1e-6, "assumption: as on the T4"))
    True
    """
    return "assumption" in number.source


def _memory(numbers: Mapping[str, Sourced]) -> str:
    found = {key: numbers[key].value for key in _MEMORIES if key in numbers}
    return ", ".join(f"{_size(v)} {key.removesuffix('_bytes')}" for key, v in found.items())


def _size(value: float) -> str:
    # gigabytes of a datasheet are decimal, the memories of a microcontroller are powers of two
    return f"{value / 1e9:.4g} GB" if value >= 1e9 else amount(value, "bytes")


def numbers_table(profile: Profile) -> Table:
    """Every number of a device with its unit, value and source."""
    table = _table("number", "value", "source")
    for name, number in profile.numbers().items():
        _add(table, name, f"{number.value:.4g}", number.source)
    return table


def formats_table(profile: Profile) -> Table:
    """What a device runs: weights and activations, as what, in which layers, by which source."""
    # Only an estimated device has rules with sources; others list what was measured.
    if not isinstance(profile, Roofline):
        table = _table("runs")
        for name in profile.formats:
            _add(table, name)
        return table
    table = _table("weights", "activations", "run as", "layers", "source")
    for runs in profile.runs:
        lists = (", ".join(names) for names in (runs.weights, runs.activations))
        _add(table, *lists, runs.compute, ", ".join(runs.layer_kinds) or "all", runs.source)
    return table


def _table(*headings: str) -> Table:
    table = new_table()
    for heading in headings:
        # Names and numbers are copied from here, so they stay whole; sentences fold around them.
        is_name = heading in ("device", "number", "value", "model", "assumed")
        table.add_column(heading, no_wrap=is_name, overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(literal, cells))
