"""The command that tunes what a search found."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mpq.cli.app import app, command_words, reporting_errors
from mpq.cli.named import named
from mpq.cli.options import EvalData, Seed
from mpq.cli.score_options import ScoreOptions
from mpq.cli.taking import taking
from mpq.cli.talk import TalkOptions
from mpq.cli.task_options import SourceOptions, held_out_spec
from mpq.cli.watching import WatchOptions, epochs_in
from mpq.workflows import defaults
from mpq.workflows.task import Task


@app.command()
@reporting_errors
@taking
def tune(
    run: Annotated[Path, typer.Argument(help="Folder of a search.")],
    what: Annotated[
        str,
        typer.Option(help="scales or all, with options: all:epochs=12,lr=5e-4. See `mpq tunings`."),
    ] = defaults.TUNING,
    eval_data: EvalData = Task.held_out,
    seed: Seed = Task.seed,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the tuned result. Default: RUN-tuned, beside it."),
    ] = None,
    *,
    source: SourceOptions,
    judged: ScoreOptions,
    watch: WatchOptions,
    talk: TalkOptions,
) -> None:
    """Tune a search's answer to answer as the original does, where that helps on unseen examples.

    Killed and called again, it goes on after the last finished epoch.
    """
    from mpq._support.files import prepared_folder
    from mpq.cli.console import print_result
    from mpq.cli.loading import load_data, load_model
    from mpq.errors import InputError
    from mpq.tuning import TUNINGS
    from mpq.workflows.load import load
    from mpq.workflows.tune import tune as run_tuning

    # First of all what is cheap to find: a name, a folder, data that is not named.
    TUNINGS.build(what)
    found, spec = load(run), source.data_spec
    folder = run.resolve().with_name(f"{run.resolve().name}-tuned") if output is None else output
    if folder.resolve() == run.resolve():
        raise InputError(
            f"--output is the folder of the search, {run}: its codes would be lost; name another"
        )
    held_out = held_out_spec(eval_data, source.is_all_demo)
    model = load_model(source.model, source.weights)
    task = Task(
        model,
        load_data(spec, model, seed),
        held_out=None if held_out is None else load_data(held_out, model, seed),
        seed=seed,
        score=judged.built(),
    )
    with prepared_folder(folder), watch.watched(talk, epochs_in(folder)):
        result = run_tuning(task, found, what, folder=folder)
        result = replace(result, made=result.made.by(command_words(), named(source, eval_data)))
        files = result.save(folder)
    talk.answer(result.assignment.to_json(), lambda console: print_result(result, console))
    talk.wrote(files)
