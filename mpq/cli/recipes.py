"""Published systems by their names: listed, and one of them with the source of every choice."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpq.cli.app import app, reporting_errors
from mpq.cli.taking import taking
from mpq.cli.talk import TalkOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from mpq.recipes import Recipe


@app.command()
@reporting_errors
@taking
def recipes(
    show: Annotated[
        str | None,
        typer.Option(help="A recipe: its formula, every choice with its source, the command."),
    ] = None,
    *,
    talk: TalkOptions,
) -> None:
    """List the published systems that `mpq search --recipe` follows, or show one of them."""
    from mpq.recipes import RECIPES, recipe_of

    if show is None:
        found = list(RECIPES.values())
        talk.answer([_json(x) for x in found], lambda console: _print_all(found, console))
        return
    recipe = recipe_of(show)
    talk.answer(_json(recipe), lambda console: _print_one(recipe, console))


def _json(recipe: "Recipe") -> dict[str, Any]:
    return {**asdict(recipe), "command": recipe.command, "yours": recipe.yours}


def _print_all(recipes: "Sequence[Recipe]", console: "Console") -> None:
    from mpq.cli.console import literal, new_table

    table = new_table()
    for heading in ("recipe", "paper", "what it uses", "what we do otherwise"):
        table.add_column(heading, overflow="fold")
    for x in recipes:
        table.add_row(*map(literal, (x.name, str(x.paper), x.summary, " ".join(x.departures))))
    console.print(table)


def _print_one(recipe: "Recipe", console: "Console") -> None:
    from mpq.cli.console import literal, new_table

    table = new_table()
    for heading in ("choice", "what is taken", "source"):
        table.add_column(heading, overflow="fold")
    for choice in recipe.choices:
        table.add_row(*map(literal, (choice.of, choice.taken, choice.source)))
    lines = [
        f"{recipe.name}, version {recipe.version}: {recipe.summary}",
        str(recipe.paper),
        recipe.formula,
        f"limits: {recipe.constraint}",
    ]
    for line in lines:
        console.print(line, markup=False, emoji=False, highlight=False)
    console.print(table)
    after = [f"then: {step}" for step in recipe.steps]
    after += [f"otherwise: {departure}" for departure in recipe.departures]
    # Not wrapped: the command is there to be copied.
    after += [f"the same as: {recipe.command}", *(f"yours: {said}" for said in recipe.yours)]
    for line in after:
        console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
