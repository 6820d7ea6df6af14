"""A profile that ``mpq profile`` wrote, as what its page says; of the file alone."""

from collections.abc import Iterator, Mapping
from math import isnan, sqrt
from pathlib import Path
from typing import Any, Final

import numpy as np

from mpq._support.arrays import Columns
from mpq.hardware_profiles.network_profile import NetworkProfile
from mpq.problem.cost_table import PairwiseCost
from mpq.report.page.layers import groups_of
from mpq.report.page.made import Made
from mpq.report.page.profiled import (
    Agreement,
    CellTime,
    ConversionTime,
    LayerTimes,
    NetworkTime,
    ProfileFacts,
    Uniform,
)
from mpq.report.page.render import profile_page
from mpq.report.save import write_drawn

_MODELS: Final = {
    "sum_of_layers": "The plain sum of layers",
    "corrected": "The sum corrected by whole networks",
}


def page_beside(profile: Path) -> Path:
    """Where the page of a profile lies: ``this.json`` has ``this.html``."""
    return profile.with_suffix(".html")


def write_profile(profile: NetworkProfile, path: Path) -> list[Path]:
    """Writes a profile's file, and its page beside it.

    Raises:
        OutputError: If a file cannot be written.
    """
    files = {path.name: profile.to_json().encode()}
    pages = {page_beside(path).name: lambda: page_of_profile(profile)}
    return write_drawn(path.parent, files, pages)


def page_of_profile(profile: NetworkProfile) -> bytes:
    """Its page."""
    return profile_page(facts_of_profile(profile))


def facts_of_profile(profile: NetworkProfile) -> ProfileFacts:
    """All that the page says."""
    table, record = profile.latency, profile.record
    networks = tuple(_networks(profile))
    made = Made(tuple(record.get("command", ())), sources=record.get("sources", {}))
    return ProfileFacts(
        name=profile.name,
        title=profile.title,
        batch_size=profile.batch_size,
        precisions=tuple(map(str, table.precisions)),
        besides=table.constant,
        uniform=tuple(_uniform(profile, networks)),
        networks=networks,
        agreements=tuple(
            Agreement(
                _MODELS.get(name, name),
                found["median_absolute_error"],
                found["largest_absolute_error"],
                found["spearman"],
                found["num_networks"],
            )
            for name, found in record.get("agreement", {}).items()
        ),
        layers=tuple(_layers(profile)),
        conversions=tuple(_conversions(profile)),
        correction=record.get("correction", {}),
        uncovered=tuple(_uncovered(profile)),
        machine=profile.machine,
        command=made.again,
        loaded=(
            ("network", "; ".join(made.named("network", "weights"))),
            ("examples", "; ".join(made.named("calibration"))),
        ),
    )


def _networks(profile: NetworkProfile) -> Iterator[NetworkTime]:
    table, mixed = profile.latency, 0
    column = {str(precision): place for place, precision in enumerate(table.precisions)}
    rows = profile.record.get("networks", ())
    networks = [tuple(row["precisions"][name] for name in table.layers) for row in rows]
    # Mixed ones come first, and what is drawn for these may be of one precision, too.
    last = {spelled: place for place, spelled in enumerate(networks)}
    for place, (row, spelled) in enumerate(zip(rows, networks, strict=True)):
        is_alike = len(set(spelled)) == 1
        is_uniform = is_alike and last[spelled] == place
        mixed += not is_uniform
        drawn = f"mixed {mixed}" + (f", all at {spelled[0]}" if is_alike else "")
        yield NetworkTime(
            f"uniform {spelled[0]}" if is_uniform else drawn,
            is_uniform,
            row["median_s"],
            row["low_s"],
            row["high_s"],
            row.get("sum_of_layers_s"),
            row.get("unseen_s"),
            table.total(np.array([column[text] for text in spelled], dtype=np.intp)),
        )


def _uniform(profile: NetworkProfile, networks: tuple[NetworkTime, ...]) -> Iterator[Uniform]:
    table = profile.latency
    run = {network.label: network for network in networks if network.is_uniform}
    for place, precision in enumerate(table.precisions):
        values, widths = table.values[:, place], profile.half_width.values[:, place]
        columns: Columns = np.full(len(values), place)
        total = table.total(columns)
        is_whole = not isnan(total)
        yield Uniform(
            str(precision),
            int(np.isfinite(values).sum()),
            float(np.nansum(values)),
            table.total_between(columns) if is_whole else None,
            total if is_whole else None,
            # Independent errors add up in squares.
            sqrt(float((widths**2).sum())) if is_whole else None,
            run.get(f"uniform {precision}"),
        )


def _layers(profile: NetworkProfile) -> Iterator[LayerTimes]:
    table, record = profile.latency, profile.record
    idle = record.get("idle", {}).get("median_s", 0.0)
    alone = {
        (row["layer"], row["precision"]): max(row["median_s"] - idle, 0.0)
        for row in record.get("layers", ())
    }
    rows = zip(
        table.layers, groups_of(table.layers), table.values.tolist(),
        profile.half_width.values.tolist(), strict=True,
    )  # fmt: skip
    for name, group, seconds, widths in rows:
        cells = (
            None if isnan(value) else CellTime(value, width, alone.get((name, str(precision))))
            for precision, value, width in zip(table.precisions, seconds, widths, strict=True)
        )
        yield LayerTimes(name, group, tuple(cells))


def _conversions(profile: NetworkProfile) -> Iterator[ConversionTime]:
    table = profile.latency
    spelled = list(map(str, table.precisions))
    measured: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in profile.record.get("neighbours", ()):
        measured.setdefault((row["layers"][0], row["layers"][1]), []).append(row)
    for pair in table.pairs:
        rows = measured.get((pair.first, pair.second), [])
        places = [tuple(map(spelled.index, row["precisions"])) for row in rows]
        yield from _beyond_cheapest(pair, rows, places, spelled)


def _beyond_cheapest(
    pair: PairwiseCost,
    rows: list[Mapping[str, Any]],
    places: list[tuple[int, ...]],
    spelled: list[str],
) -> Iterator[ConversionTime]:
    """Every measured combination, beyond the one that is cheapest by the same account."""
    # What all combinations have in common is in the constant; an older file has no excess.
    predicted = [float(pair.values[place]) for place in places]
    found = [row.get("excess_s") for row in rows]
    known = [excess for excess in found if excess is not None]
    for (before, after), seconds, excess in zip(places, predicted, found, strict=True):
        yield ConversionTime(
            pair.first,
            pair.second,
            spelled[before],
            spelled[after],
            seconds - min(predicted),
            None if excess is None else excess - min(known),
        )


def _uncovered(profile: NetworkProfile) -> Iterator[str]:
    record, table = profile.record, profile.latency
    for wrong in record.get("computed_wrongly", ()):
        yield (
            f"{wrong['layer']} at {wrong['precision']} is left out: the runtime computes something "
            f"else there, off by {wrong['error_in_standard_deviations']:.2g} standard deviations "
            "of its output."
        )
    wrong_cells = {(x["layer"], x["precision"]) for x in record.get("computed_wrongly", ())}
    for precision, column in zip(table.precisions, table.values.T, strict=True):
        names = [
            name for name, value in zip(table.layers, column.tolist(), strict=True)
            if isnan(value) and (name, str(precision)) not in wrong_cells
        ]  # fmt: skip
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"No kernel at {precision}: {', '.join(names[:3])}{more}."
    if not table.pairs:
        yield "What conversions between layers cost was not measured by itself."
    if not record.get("networks"):
        yield "No whole network was run: what is besides the layers is not known."
    yield profile.notes
