"""The command that evolves a proxy by what was measured of networks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpq.cli import options as o
from mpq.cli.app import app, reporting_errors
from mpq.cli.taking import taking
from mpq.cli.talk import TalkOptions
from mpq.cli.task_options import (
    DEMO,
    DrawOptions,
    PatternOptions,
    RangeOptions,
    SourceOptions,
    held_out_spec,
)
from mpq.cli.watching import WatchOptions
from mpq.workflows import defaults
from mpq.workflows.rules import Rules
from mpq.workflows.task import Task

if TYPE_CHECKING:
    from rich.console import Console

    from mpq.report.evolved_proxy import EvolvedProxy

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="Network, as of other commands; one for all files, or given once for each, as are "
        "--weights and --data.",
    ),
]
ManyWeights = Annotated[
    list[Path] | None,
    typer.Option("--weights", help="Weights, in the order of the models; none: its own."),
]
ManyData = Annotated[
    list[str] | None,
    typer.Option("--data", help="Calibration batches, in the order of the models."),
]
NO_WEIGHTS = Path("none")
"""In the place of a file, for one of several networks that comes with its weights."""
Generations = Annotated[int, typer.Option(help="How often the formulas are renewed.")]
Population = Annotated[int, typer.Option(help="Formulas in a generation.")]
Labels = Annotated[
    str, typer.Option(help="Labels of gradients: sampled from the network, or targets of the data.")
]


@dataclass(frozen=True, eq=False)
class NetworksOptions:
    """The networks that the benchmarks are of, and how they are quantized."""

    model: Models = None
    weights: ManyWeights = None
    data: ManyData = None
    patterns: PatternOptions = field(default_factory=PatternOptions)
    ranges: RangeOptions = field(default_factory=RangeOptions)
    draws: DrawOptions = field(default_factory=DrawOptions)

    def tasks(self, count: int) -> list[Task]:
        """One for each of so many benchmarks.

        Raises:
            InputError: If there are neither one nor as many networks.
        """
        tasks = [self._task(source) for source in self._sources()]
        if len(tasks) not in (1, count):
            from mpq.errors import InputError

            raise InputError(
                f"--model is given {len(tasks)} times for {count} benchmarks: once, or once each"
            )
        return tasks * count if len(tasks) == 1 else tasks

    def _sources(self) -> list[SourceOptions]:
        from mpq.errors import InputError

        models = self.model or [DEMO]
        for option, given in (("--weights", self.weights), ("--data", self.data)):
            if given and len(given) != len(models):
                raise InputError(f"{option} is given {len(given)} times for {len(models)} --model")
        given_weights = self.weights or [NO_WEIGHTS] * len(models)
        weights = [None if path == NO_WEIGHTS else path for path in given_weights]
        data: Sequence[str | None] = self.data or [None] * len(models)
        return [SourceOptions(*one) for one in zip(models, weights, data, strict=True)]

    def _task(self, source: SourceOptions) -> Task:
        from mpq.cli.loading import load_data, load_model

        # First of all: that --data is missing is said before the model's code runs.
        spec, held_out = source.data_spec, held_out_spec(None, source.is_all_demo)
        model = load_model(source.model, source.weights)
        return Task(
            model,
            load_data(spec, model, self.draws.seed),
            # As a search has it: where there is none, a part of the examples is left out.
            held_out=None if held_out is None else load_data(held_out, model, self.draws.seed),
            rules=Rules(self.patterns.include or (), self.patterns.exclude or ()),
            ranges=self.ranges.ranges(),
            rounding=self.ranges.rounding,
            seed=self.draws.seed,
            allow_randomness=self.draws.allow_randomness,
        )


@app.command()
@reporting_errors
@taking
def evolve_proxy(
    benchmarks: Annotated[list[Path], typer.Argument(help="Of `mpq compare --save-bench`.")],
    generations: Generations = defaults.NUM_GENERATIONS,
    population: Population = defaults.NUM_PROXIES,
    labels: Labels = "sampled",
    output: o.Output = Path("mpq-proxy"),
    *,
    networks: NetworksOptions,
    watch: WatchOptions,
    talk: TalkOptions,
) -> None:
    """Evolve a formula for `--sensitivity zero-cost:formula=...` that ranks as was measured."""
    from mpq._support.files import prepared_folder
    from mpq.report.loss_benchmark import LossBenchmark
    from mpq.workflows.evolve_proxy import evolve_proxy as run

    found = [LossBenchmark.load(path) for path in benchmarks]
    tasks = networks.tasks(len(found))
    with prepared_folder(output), watch.watched(talk, can_keep=False):
        proxy = run(
            list(zip(tasks, found, strict=True)),
            generations=generations,
            population=population,
            labels=labels,
            seed=networks.draws.seed,
        )
        files = proxy.save(output)
    talk.answer(proxy.to_json(), lambda console: _print(proxy, benchmarks, console))
    talk.wrote(files)


def _print(proxy: "EvolvedProxy", files: list[Path], console: "Console") -> None:
    from mpq.cli.console import literal, new_table

    table = new_table(f"Spearman's rank correlation, after {proxy.num_tried} formulas")
    table.add_column("formula", overflow="fold")
    for file in files:
        table.add_column(literal(str(file)), justify="right", overflow="fold")
    for text, values in ((proxy.formula, proxy.spearman), *proxy.known.items()):
        table.add_row(literal(text), *(f"{value:.3f}" for value in values))
    console.print(table)
    # Not wrapped: it is there to be copied.
    line = f"--sensitivity '{proxy.estimator}'"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
