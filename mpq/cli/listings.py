"""Commands that list what there is: devices, estimators, solvers, formats and the like."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpq.cli.app import app, reporting_errors
from mpq.cli.taking import taking
from mpq.cli.talk import TalkOptions, write

# Everything else is imported within the commands, so that ``mpq --help`` loads no torch.
if TYPE_CHECKING:
    from mpq._support.registry import Registry
    from mpq.quantization.number_format import NumberFormat


@app.command()
@reporting_errors
@taking
def devices(
    show: Annotated[
        str | None,
        typer.Option(help="A device, or path/to/profile.json: every number and its source."),
    ] = None,
    *,
    talk: TalkOptions,
) -> None:
    """List the devices that ship with mpq, or show one of them, or your own profile."""
    from mpq.cli.devices import device_json, devices_table, numbers_json, print_device
    from mpq.hardware_profiles import device_names, load_device

    if show is None:
        found = [load_device(name) for name in device_names()]
        rows = [device_json(profile) for profile in found]
        talk.answer(rows, lambda console: console.print(devices_table(found)))
        return
    profile = load_device(show)
    answer = {**device_json(profile), "notes": profile.notes, "numbers": numbers_json(profile)}
    talk.answer(answer, lambda console: print_device(profile, console))


@app.command()
@reporting_errors
@taking
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
    *,
    talk: TalkOptions,
) -> None:
    """Make a profile of measurements, such as published ones."""
    from mpq._support.files import write_files
    from mpq.hardware_profiles.catalogue import device_name
    from mpq.hardware_profiles.measured_table.published import import_table as run

    # Called as the file is, which is what --device will be given.
    name = device_name(output)
    table = run(converter, file, name, clock_hz, head_tail, allow_extrapolation)
    files = write_files(output.parent, {output.name: table.to_json().encode()})
    talk.answer(table.to_json(), lambda _: talk.wrote(files))


@app.command()
@reporting_errors
@taking
def estimators(talk: TalkOptions) -> None:
    """List the sensitivity estimators and their options."""
    from mpq.sensitivity import ESTIMATORS

    _print_parts(ESTIMATORS, talk)


@app.command()
@reporting_errors
@taking
def solvers(talk: TalkOptions) -> None:
    """List the solvers and their options."""
    from mpq.solvers import SOLVERS

    _print_parts(SOLVERS, talk)


@app.command()
@reporting_errors
@taking
def runtimes(talk: TalkOptions) -> None:
    """List the runtimes that `mpq profile` can measure, and their options."""
    from mpq.hardware_profiles.profiling import RUNTIMES

    _print_parts(RUNTIMES, talk)


@app.command()
@reporting_errors
@taking
def backends(talk: TalkOptions) -> None:
    """List the backends that `mpq export --to` takes, and their options."""
    from mpq.backends import BACKENDS

    _print_parts(BACKENDS, talk)


@app.command()
@reporting_errors
@taking
def targets(
    show: Annotated[
        str | None, typer.Option(help="A target: all that it holds, and what to know of it.")
    ] = None,
    lint: Annotated[
        Path | None,
        typer.Option(help="An ONNX file: TensorRT's rules that it breaks. Nothing is run."),
    ] = None,
    *,
    talk: TalkOptions,
) -> None:
    """List the tools that `mpq search --to` and `mpq export --to` know, or show one of them."""
    from mpq.backends import BACKENDS, Target, target_of
    from mpq.cli.targets import findings_lines, print_target, target_json, targets_table

    if lint is not None:
        from dataclasses import asdict

        from mpq.backends.onnx.tensorrt import lint as lint_file

        broken = lint_file(lint)
        talk.answer([asdict(x) for x in broken], lambda _: write("\n".join(findings_lines(broken))))
        return
    if show is None:
        found = [part for part in BACKENDS if issubclass(part, Target)]
        rows = [target_json(part) for part in found]
        talk.answer(rows, lambda console: console.print(targets_table(found)))
        return
    target = type(target_of(show))
    talk.answer(target_json(target), lambda console: print_target(target, console))


@app.command()
@reporting_errors
@taking
def metrics(talk: TalkOptions) -> None:
    """List the metrics that outputs are compared by, and their options."""
    from mpq.network.metrics import METRICS

    _print_parts(METRICS, talk)


@app.command()
@reporting_errors
@taking
def sources(talk: TalkOptions) -> None:
    """List the sources of calibration examples that need no data, and their options."""
    from mpq.network.synthetic import DATA_SOURCES

    _print_parts(DATA_SOURCES, talk)


@app.command()
@reporting_errors
@taking
def sections(talk: TalkOptions) -> None:
    """List the sections of a search's report; those of other packages need `--section`."""
    from mpq.report.sections import SECTIONS

    _print_parts(SECTIONS, talk)


def _print_parts(registry: "Registry[Any]", talk: TalkOptions) -> None:
    from mpq.cli.console import literal, new_table

    answer = [_part(registry, name) for name in registry.names()]
    table = new_table()
    for heading in (registry.kind, "what it does", "options"):
        # Folded and not cut: options are looked up here to be typed.
        table.add_column(heading, overflow="fold")
    for row in answer:
        spelled = ",".join(f"{key}={value}" for key, value in row.get("options", {}).items())
        table.add_row(*map(literal, (row["name"], row.get("summary") or row["error"], spelled)))
    talk.answer(answer, lambda console: console.print(table))


def _part(registry: "Registry[Any]", name: str) -> dict[str, Any]:
    """JSON-ready; of a part of another package that cannot be used, the error."""
    from mpq.errors import InputError

    try:
        part = registry.get(name)
    except InputError as error:
        return {"name": name, "error": str(error)}
    return {"name": name, "summary": part.summary, "options": registry.options(part)}


@app.command()
@reporting_errors
@taking
def formats(talk: TalkOptions) -> None:
    """List the number formats, and how each is written in a precision."""
    from mpq.cli.console import literal, new_table
    from mpq.errors import InputError
    from mpq.quantization.formats import NUMBER_FORMATS

    table = new_table()
    for heading in (NUMBER_FORMATS.kind, "written", "bits", "what it is"):
        table.add_column(heading, overflow="fold")
    answer: list[dict[str, Any]] = []
    failed: list[tuple[str, ...]] = []
    rows: dict[str, list[NumberFormat]] = {}  # by family; most formats have none
    for name in NUMBER_FORMATS:
        try:
            number = NUMBER_FORMATS[name]
        except InputError as error:
            failed.append((name, "", "", str(error)))
            answer.append({"name": name, "error": str(error)})
            continue
        rows.setdefault(number.family or number.name, []).append(number)
        answer.append(
            {
                "name": number.name,
                "written": [_letter(number) + text for text in number.spellings],
                "bits": number.bits,
                "summary": number.summary,
            }
        )
    for row in (*(_format_row(name, members) for name, members in rows.items()), *failed):
        table.add_row(*map(literal, row))
    talk.answer(answer, lambda console: console.print(table))


def _letter(number: "NumberFormat") -> str:
    return "a" if number.is_for_inputs else "w"


def _format_row(name: str, members: Sequence["NumberFormat"]) -> tuple[str, ...]:
    """Of one format, or of a family, whose members are written here in one way each."""
    from mpq.quantization.formats import FAMILIES

    first = members[0]
    if name not in FAMILIES:
        written = ", ".join(_letter(first) + text for text in first.spellings)
        return name, written, str(first.bits), first.summary
    written = ", ".join(_letter(number) + number.spellings[0] for number in members)
    bits = [number.bits for number in members]
    return name, written, f"{min(bits)} to {max(bits)}", FAMILIES[name]


@app.command()
@reporting_errors
@taking
def scales(talk: TalkOptions) -> None:
    """List what the scales of a weight can be stored in: w4g64sfp8."""
    from mpq.cli.console import literal, new_table
    from mpq.quantization.scale_formats import SCALE_FORMATS

    table = new_table()
    for heading in ("scales", "written", "bits", "what it is"):
        table.add_column(heading, overflow="fold")
    for told in SCALE_FORMATS.values():
        table.add_row(*map(literal, (told.name, f"s{told.name}", str(told.bits), told.summary)))
    answer = [
        {"name": x.name, "written": f"s{x.name}", "bits": x.bits, "summary": x.summary}
        for x in SCALE_FORMATS.values()
    ]
    talk.answer(answer, lambda console: console.print(table))


@app.command()
@reporting_errors
@taking
def ranges(talk: TalkOptions) -> None:
    """List the methods that choose the range of a weight or an activation, and their options."""
    from mpq.quantization.ranges import RANGE_METHODS

    _print_parts(RANGE_METHODS, talk)


@app.command()
@reporting_errors
@taking
def roundings(talk: TalkOptions) -> None:
    """List the ways in which weights become codes, and their options."""
    from mpq.rounding import ROUNDINGS

    _print_parts(ROUNDINGS, talk)


@app.command()
@reporting_errors
@taking
def transforms(talk: TalkOptions) -> None:
    """List the transformations that `mpq search --transform` takes, and their options."""
    from mpq.transforms import TRANSFORMS

    _print_parts(TRANSFORMS, talk)


@app.command()
@reporting_errors
@taking
def tunings(talk: TalkOptions) -> None:
    """List what `mpq tune` and `mpq search --tune` can tune, and their options."""
    from mpq.tuning import TUNINGS

    _print_parts(TUNINGS, talk)
