"""Commands that list what there is: devices, estimators, solvers, formats and the like."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mpq.cli.app import app, print_files, reporting_errors
from mpq.cli.options import Debug


@app.command()
@reporting_errors
def devices(
    show: Annotated[
        str | None,
        typer.Option(help="A device, or path/to/profile.json: every number and its source."),
    ] = None,
    debug: Debug = False,
) -> None:
    """List the devices that ship with mpq, or show one of them, or your own profile."""
    from mpq.cli.console import new_console
    from mpq.cli.devices import devices_table, formats_table, numbers_table
    from mpq.hardware_profiles import device_names, load_device

    console = new_console()
    if show is None:
        console.print(devices_table(map(load_device, device_names())))
        return
    profile = load_device(show)
    console.print(
        f"{profile.name}: {profile.title}\n\nCosts are {profile.basis}. {profile.notes}\n",
        markup=False,
        highlight=False,
    )
    console.print(numbers_table(profile))
    console.print(formats_table(profile))


@app.command()
@reporting_errors
def import_table(
    converter: Annotated[
        str, typer.Argument(help="Layout: csv, hawqv3-t4, apq-bitfusion or haq-cycles.")
    ],
    file: Annotated[Path, typer.Argument(help="Measurements that somebody made.")],
    output: Annotated[
        Path, typer.Option(help="Profile, for --device; the device is called as this file.")
    ] = Path("table.json"),
    clock_hz: Annotated[
        float | None, typer.Option(help="Of the device, where the file counts cycles.")
    ] = None,
    head_tail: Annotated[
        Path | None, typer.Option(help="APQ's JSON of what runs before and after the layers.")
    ] = None,
    allow_extrapolation: Annotated[
        bool, typer.Option("--allow-extrapolation", help="Price shapes outside the range too.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Make a profile of measurements, such as published ones."""
    from mpq._support.files import write_files
    from mpq.hardware_profiles.catalogue import device_name
    from mpq.hardware_profiles.measured_table.published import import_table as run

    name = device_name(output)
    table = run(converter, file, name, clock_hz, head_tail, allow_extrapolation)
    print_files(write_files(output.parent, {output.name: table.to_json().encode()}))


@app.command()
@reporting_errors
def estimators(debug: Debug = False) -> None:
    """List the sensitivity estimators and their options."""
    from mpq.sensitivity import ESTIMATORS

    _print_parts(ESTIMATORS)


@app.command()
@reporting_errors
def solvers(debug: Debug = False) -> None:
    """List the solvers and their options."""
    from mpq.solvers import SOLVERS

    _print_parts(SOLVERS)


@app.command()
@reporting_errors
def runtimes(debug: Debug = False) -> None:
    """List the runtimes that `mpq profile` can measure, and their options."""
    from mpq.hardware_profiles.profiling import RUNTIMES

    _print_parts(RUNTIMES)


@app.command()
@reporting_errors
def sources(debug: Debug = False) -> None:
    """List the sources of calibration examples that need no data, and their options."""
    from mpq.network.synthetic import DATA_SOURCES

    _print_parts(DATA_SOURCES)


def _print_parts(registry: Any) -> None:
    from mpq.cli.console import new_console, new_table

    table = new_table()
    for heading in (registry.kind, "what it does", "options"):
        table.add_column(heading, overflow="fold")
    for part in registry:
        options = (f"{name}={value}" for name, value in registry.options(part).items())
        table.add_row(part.name, part.summary, ",".join(options))
    new_console().print(table)


@app.command()
@reporting_errors
def formats(debug: Debug = False) -> None:
    """List the number formats, and how each is written in a precision."""
    from mpq.cli.console import new_console, new_table
    from mpq.quantization.formats import NUMBER_FORMATS

    table = new_table()
    for heading in (NUMBER_FORMATS.kind, "written", "bits", "what it is"):
        table.add_column(heading, overflow="fold")
    for number in NUMBER_FORMATS.values():
        written = ", ".join(f"w{text}" for text in number.spellings)
        table.add_row(number.name, written, str(number.bits), number.summary)
    new_console().print(table)


@app.command()
@reporting_errors
def ranges(debug: Debug = False) -> None:
    """List the methods that choose the range of a weight or an activation, and their options."""
    from mpq.quantization.ranges import RANGE_METHODS

    _print_parts(RANGE_METHODS)
