"""Commands that work on a network, a table or an assignment."""

import json
from dataclasses import replace
from typing import Annotated

import typer

from mpq.cli.app import app, command_words, reporting_errors
from mpq.cli.comparing import CompareOptions
from mpq.cli.instead import is_done_instead
from mpq.cli.named import named, named_in
from mpq.cli.options import (
    AssignmentFile,
    Differing,
    Limits,
    MaxPredicted,
    Seed,
    SolvedAlternatives,
    SolvedMinimize,
    SolverName,
    TableFile,
)
from mpq.cli.requests import (
    AlternativeOptions,
    ProfileOptions,
    ReadingOptions,
    SearchOptions,
)
from mpq.cli.score_options import ScoreOptions
from mpq.cli.sharing import working
from mpq.cli.taking import taking
from mpq.cli.talk import TalkOptions, say, write
from mpq.cli.task_options import (
    DEMO,
    DEMO_HELD_OUT,
    AsSearchedOptions,
    AssignedOptions,
)
from mpq.cli.watching import WatchOptions
from mpq.workflows.defaults import SOLVER
from mpq.workflows.task import Task


# Decorators work from below: ``taking`` opens the groups of options, ``reporting_errors`` passes
# that signature on, and typer reads it.
@app.command()
@reporting_errors
@taking
def search(options: SearchOptions, watch: WatchOptions, talk: TalkOptions) -> None:
    """Find the best bit width for every layer within limits, on the built-in demo or your model."""
    from mpq._support.phases import phase
    from mpq._support.ranks import is_other_rank
    from mpq.cli.console import print_frontier, print_result, print_warning
    from mpq.report.save import save_alternatives
    from mpq.workflows.forecast import ALTERNATIVES
    from mpq.workflows.made_here import made_here
    from mpq.workflows.outcome import announced

    if is_done_instead(options, watch, talk, has_question=True):
        return
    has_others = options.others.alternatives > 0
    with working(options.output, watch, talk, options.kept) as phases:
        result, session = options.run()
        if is_other_rank():
            return
        curve = options.frontier(result, session)
        made = made_here(phases).by(options.in_full(command_words()), named_in(options))
        result = replace(result, made=made)
        files = result.save(options.output, curve, options.section or [])
        if has_others:
            with phase(ALTERNATIVES):
                found = options.alternatives(result, session)
            files += save_alternatives(found, options.output, result.run_id)
        announced(result)
    talk.answer(result.assignment.to_json(), lambda console: print_result(result, console))
    if curve.warning and not talk.as_json:
        talk.answer("", lambda console: print_warning(curve, console))
    # JSON is one document, the assignment; alternatives are then in their file only.
    if has_others and not talk.as_json:
        talk.answer("", lambda console: print_frontier(found, console, "Alternatives"))
    talk.wrote(files)


@app.command()
@reporting_errors
@taking
def frontier(options: SearchOptions, watch: WatchOptions, talk: TalkOptions) -> None:
    """Least loss for every amount of one resource: frontier.csv, .json, .png; a folder behind."""
    from mpq._support.ranks import is_other_rank
    from mpq.cli.console import print_frontier
    from mpq.report.save import BEHIND, save_frontier
    from mpq.workflows.made_here import made_here
    from mpq.workflows.outcome import announced

    if is_done_instead(options, watch, talk, has_question=False):
        return
    with working(options.output, watch, talk, options.kept) as phases:
        result, found = options.run_frontier()
        if is_other_rank():
            return
        files = save_frontier(found, options.output)
        # In a folder of its own: beside it may lie the answer of a search.
        behind = options.output / BEHIND
        made = made_here(phases).by(options.in_full(command_words()), named_in(options))
        files += replace(result, made=made).save(behind, found)
        announced(found)
    talk.answer(found.to_json(), lambda console: print_frontier(found, console))
    talk.wrote(files)


@app.command()
@reporting_errors
@taking
def solve(
    table: TableFile,
    limit: Limits = None,
    solver: SolverName = SOLVER,
    minimize: SolvedMinimize = None,
    max_loss: MaxPredicted = None,
    alternatives: SolvedAlternatives = 1,
    differing: Differing = AlternativeOptions.differing,
    seed: Seed = Task.seed,
    *,
    reading: ReadingOptions,
    talk: TalkOptions,
) -> None:
    """Solve a table that somebody else made, or a search's problem.json again; JSON. No torch."""
    from mpq.cli.problem_file import load_problem
    from mpq.problem.solution import record
    from mpq.solvers import SOLVERS
    from mpq.solvers.queries.solve import answers

    problem, resources = load_problem(table, limit or (), reading.allow_missing)
    built = SOLVERS.build(solver, seed)
    # As a search does with a solver that takes no interactions; here it has to be asked for.
    problem = problem.additive() if reading.additive else problem
    found = answers(problem, resources, built, minimize, max_loss, alternatives, differing)
    # Not by ``talk.answer``: this command has no other form of its answer.
    write(json.dumps([record(asked, solution) for asked, solution in found], indent=1))
    if len(found) < alternatives and not talk.quiet:
        layers = "1 layer" if differing == 1 else f"{differing} layers"
        say(f"{len(found)} of {alternatives} alternatives: none was found that differs in {layers}")


@app.command()
@reporting_errors
@taking
def compare(options: CompareOptions, watch: WatchOptions, talk: TalkOptions) -> None:
    """Measure which estimator predicts your network, or what published systems lose on it."""
    from mpq._support.files import prepared_folder
    from mpq.cli.console import print_comparison, print_recipes

    sources = named(options.asked.source, options.asked.eval_data)
    if options.recipes:
        with prepared_folder(options.output), watch.watched(talk, options.kept):
            searched = options.run_recipes()
            searched = replace(searched, made=searched.made.by(command_words(), sources))
            files = searched.save(options.output)
        talk.answer(searched.to_json(), lambda console: print_recipes(searched, console))
        talk.wrote(files)
        return

    with prepared_folder(options.output), watch.watched(talk, options.kept):
        found = options.run()
        found = replace(found, made=found.made.by(command_words(), sources))
        files = found.save(options.output)
    files += [] if options.save_bench is None else [options.save_bench]
    # By pandas, which writes nan as null; Python's json would write a token that is no JSON.
    rows = found.table().to_json(orient="records", indent=1)
    talk.answer(rows, lambda console: print_comparison(found, console))
    talk.wrote(files)


@app.command()
@reporting_errors
@taking
def evaluate(
    assignment: AssignmentFile,
    data: Annotated[
        str | None, typer.Option(help="Function that yields held-out batches; named as --model.")
    ] = None,
    *,
    on: AssignedOptions,
    compared: AsSearchedOptions,
    judged: ScoreOptions,
    watch: WatchOptions,
    talk: TalkOptions,
) -> None:
    """Measure an assignment on held-out examples: KL divergence, accuracy, cross entropy; JSON."""
    from mpq.cli.loading import load_callable, refuse_missing_data
    from mpq.workflows.evaluate import evaluate as run

    found = on.assignment(assignment)
    if data is None and on.model != DEMO:
        refuse_missing_data(on.model, "held-out")
    # Not the calibration examples: ranges were chosen for these, so that they flatter the network.
    examples = load_callable(data or DEMO_HELD_OUT)
    seed = compared.allow_randomness
    with watch.watched(talk, can_keep=False):
        network, score = on.network(), judged.built()
        measured = run(network, found, examples, compared.spelled, seed, on.memory, score)
    write(json.dumps({name: m.to_dict() for name, m in measured.items()}, indent=1))


@app.command()
@reporting_errors
@taking
def profile(options: ProfileOptions, watch: WatchOptions, talk: TalkOptions) -> None:
    """Measure your network on this machine, layer by layer and as a whole: a device for search."""
    from mpq._support.files import prepared_folder
    from mpq.cli.console import print_profile
    from mpq.report.page.made import Made
    from mpq.workflows.page.profiled import write_profile

    folder = options.output.parent
    with prepared_folder(folder):
        with watch.watched(talk, options.kept):
            found = options.run()
        loaded = named(options.source, None)
        # Nothing is measured on held-out examples here.
        loaded.pop("held_out", None)
        made = Made().by(command_words(), loaded)
        record = {"command": list(made.command), "sources": dict(made.sources)}
        found = replace(found, record={**found.record, **record})
        files = write_profile(found, options.output)
    # The profile is on disk; until then the journal was all that there was of the measurement.
    options.journal.unlink(missing_ok=True)
    talk.answer(found.to_json(), lambda console: print_profile(found, console))
    talk.wrote(files)
