"""Inference by patches: what it takes of a network's memory and arithmetic."""

from typing import TYPE_CHECKING, Annotated

import typer

from mpq.cli import options as o
from mpq.cli.app import app, reporting_errors
from mpq.cli.taking import taking
from mpq.cli.talk import TalkOptions
from mpq.cli.task_options import DEMO
from mpq.network.patch_rules import PatchRules

if TYPE_CHECKING:
    from rich.console import Console

    from mpq.network.patches import FoundPatches, PatchPlan

_DEMO_SHAPE = "1x8x8"


@app.command()
@reporting_errors
@taking
def patches(
    model: o.Model = DEMO,
    weights: o.Weights = None,
    shape: Annotated[
        str | None, typer.Option(help="Of one image: channels, rows and columns, as 3x224x224.")
    ] = None,
    cut: Annotated[
        str | None,
        typer.Option(help="Module behind which the rest runs as a whole. Default: the best one."),
    ] = PatchRules.cut,
    per_axis: Annotated[
        int | None,
        typer.Option("--patches", help="Along rows, and along columns. Default: the best number."),
    ] = PatchRules.num_patches,
    most_patches: Annotated[
        int, typer.Option(help="The largest such number that is tried.")
    ] = PatchRules.most_patches,
    max_recomputed: Annotated[
        float,
        typer.Option(help="Share of the network's products that may be computed once more."),
    ] = PatchRules.most_recomputed,
    bits: Annotated[int, typer.Option(help="Of every number between layers.")] = PatchRules.bits,
    stream_input: Annotated[
        bool,
        typer.Option("--stream-input", help="Pieces of the input come as patches need them."),
    ] = PatchRules.is_input_streamed,
    *,
    talk: TalkOptions,
) -> None:
    """Plan the first layers patch by patch, as microcontrollers run them: peak RAM, and MACs."""
    from mpq.cli.loading import load_model
    from mpq.errors import InputError
    from mpq.network.patches import find_patches, largest_difference
    from mpq.network.synthetic import DATA_SOURCES

    if shape is None and model != DEMO:
        raise InputError("--model needs --shape: that of one image, such as 3x224x224")
    rules = PatchRules(cut, per_axis, most_patches, max_recomputed, bits, stream_input)
    network = load_model(model, weights)
    source = DATA_SOURCES.build(f"noise:num_examples=2,shape={shape or _DEMO_SHAPE}")
    example = source.calibration(network).first()
    found = find_patches(network, example, rules)
    shown = found.best or next(iter(found.plans), None)
    off = None if shown is None else largest_difference(network, example, shown)
    answer = {
        "whole_ram_bytes": found.whole_ram_bytes,
        "best": None if found.best is None else found.best.to_dict(),
        "plans": [plan.to_dict() for plan in found.plans],
        "num_left_out": found.num_left_out,
        "end": found.end,
        "largest_difference": off,
    }
    talk.answer(answer, lambda console: _print(found, rules.most_recomputed, off, console))


def _print(
    found: "FoundPatches", most_recomputed: float, off: float | None, console: "Console"
) -> None:
    from mpq._support.names import for_people
    from mpq.cli.console import literal, new_table

    table = new_table("Patches: least memory for every amount of MACs done again")
    for heading in ("patched up to", "output", "patches"):
        table.add_column(heading, overflow="fold")
    for heading in ("peak RAM", "in patches", "behind", "MACs done again", "of all"):
        table.add_column(heading, justify="right")
    whole = f"{found.whole_ram_bytes:,} B"
    table.add_row("(no patches)", "", "", whole, "", whole, "0", "0 %")
    for plan in found.frontier:
        table.add_row(*map(literal, _row(plan)))
    console.print(table)
    lines = [_sentence(found)]
    if off is not None:
        lines.append(f"by patches, outputs differ by {off:.1e} of the largest at the most")
    if found.num_left_out:
        share = f"{most_recomputed:.0%}"
        lines.append(f"{found.num_left_out} plans do more than {share} of the MACs again")
    if found.end:
        lines.append(f"patches end where {found.end}")
    for line in lines:
        console.print(for_people(line), markup=False, emoji=False, highlight=False)


def _row(plan: "PatchPlan") -> tuple[str, ...]:
    return (
        plan.cut,
        "x".join(map(str, plan.shape)),
        f"{plan.num_patches}x{plan.num_patches}",
        f"{plan.ram_bytes:,} B",
        f"{plan.patches_ram_bytes:,} B",
        f"{plan.rest_ram_bytes:,} B",
        f"{plan.recomputed_macs:,}",
        f"{plan.recomputed_share:.1%}",
    )


def _sentence(found: "FoundPatches") -> str:
    if found.best is None:
        return "no plan holds less than the network without patches"
    plan, share = found.best, found.best.ram_bytes / found.whole_ram_bytes
    held = "streamed" if plan.is_input_streamed else "held until the last patch"
    return (
        f"best: {plan.num_patches}x{plan.num_patches} patches up to {plan.cut}: {share:.0%} of the "
        f"peak RAM, at {plan.bits} bits between layers, the input {held}"
    )
