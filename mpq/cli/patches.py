"""Inference by patches: what it takes of a network's memory and arithmetic."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from mpq.cli import options as o
from mpq.cli.app import app, reporting_errors
from mpq.cli.taking import taking
from mpq.cli.talk import TalkOptions
from mpq.cli.task_options import DEMO
from mpq.network.patch_rules import PatchRules

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from mpq.network.patches import FoundPatches, PatchPlan

_DEMO_SHAPE = "1x8x8"


@dataclass(frozen=True)
class PatchOptions:
    """Which plans are looked at, and how their memory is counted."""

    cut: Annotated[
        str | None,
        typer.Option(help="Module behind which the rest runs as a whole. Default: the best one."),
    ] = PatchRules.cut
    per_axis: Annotated[
        int | None,
        typer.Option("--patches", help="Along rows, and along columns. Default: the best number."),
    ] = PatchRules.num_patches
    most_patches: Annotated[int, typer.Option(help="The largest such number that is tried.")] = (
        PatchRules.most_patches
    )
    max_recomputed: Annotated[
        float,
        typer.Option(help="Share of the network's products that may be computed once more."),
    ] = PatchRules.most_recomputed
    bits: Annotated[int, typer.Option(help="Of every number between layers.")] = PatchRules.bits
    stream_input: Annotated[
        bool,
        typer.Option("--stream-input", help="Pieces of the input come as patches need them."),
    ] = PatchRules.is_input_streamed

    @property
    def rules(self) -> PatchRules:
        """The same for the search."""
        return PatchRules(
            self.cut, self.per_axis, self.most_patches, self.max_recomputed, self.bits,
            self.stream_input,
        )  # fmt: skip


@app.command()
@reporting_errors
@taking
def patches(
    model: o.Model = DEMO,
    weights: o.Weights = None,
    shape: Annotated[
        str | None, typer.Option(help="Of one image: channels, rows and columns, as 3x224x224.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Function that yields batches of images, named as --model: for --shape."),
    ] = None,
    outliers: Annotated[
        float | None,
        typer.Option(
            help="Standard deviations from which on a number of the input is an outlier: how many "
            "patches of --data have one (QuantMCU)."
        ),
    ] = None,
    *,
    asked: PatchOptions,
    talk: TalkOptions,
) -> None:
    """Plan the first layers patch by patch, as microcontrollers run them: peak RAM, and MACs."""
    from mpq.cli.loading import load_data, load_model
    from mpq.errors import InputError
    from mpq.network.examples import Calibration
    from mpq.network.patches import find_patches, largest_difference, outlier_share

    if data is None and outliers is not None:
        raise InputError("--outliers needs --data: noise has none of an image's")
    if (shape is None and data is None and model != DEMO) or (shape and data):
        raise InputError("--model needs either --shape, that of one image as 3x224x224, or --data")
    rules = asked.rules
    network = load_model(model, weights)
    spec = data or f"noise:num_examples=2,shape={shape or _DEMO_SHAPE}"
    examples = Calibration.of(load_data(spec, network))
    example = examples.first()
    found = find_patches(network, example, rules)
    shown = found.best or next(iter(found.plans), None)
    off = None if shown is None else largest_difference(network, example, shown)
    share = None
    if shown is not None and outliers is not None:
        share = outlier_share(network, examples, shown, outliers)
    answer = {**found.to_dict(), "largest_difference": off, "outlier_share": share}
    lines = _sentences(found, rules, off, share)
    talk.answer(answer, lambda console: _print(found, lines, console))


def _print(found: "FoundPatches", lines: "Sequence[str]", console: "Console") -> None:
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
    for line in lines:
        console.print(for_people(line), markup=False, emoji=False, highlight=False)


def _sentences(
    found: "FoundPatches", rules: PatchRules, off: float | None, share: float | None
) -> list[str]:
    lines = [_best(found)]
    if off is not None:
        lines.append(f"by patches, outputs differ by {off:.1e} of the largest at the most")
    if share is not None:
        lines.append(f"{share:.1%} of the examples' patches read outliers of the input")
    if found.num_left_out:
        again = f"{rules.most_recomputed:.0%}"
        lines.append(f"{found.num_left_out} plans do more than {again} of the MACs again")
    if found.end:
        lines.append(f"patches end where {found.end}")
    return lines


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


def _best(found: "FoundPatches") -> str:
    if found.best is None:
        return "no plan holds less than the network without patches"
    plan, share = found.best, found.best.ram_bytes / found.whole_ram_bytes
    held = "streamed" if plan.is_input_streamed else "held until the last patch"
    return (
        f"best: {plan.num_patches}x{plan.num_patches} patches up to {plan.cut}: {share:.0%} of the "
        f"peak RAM, at {plan.bits} bits between layers, the input {held}"
    )
