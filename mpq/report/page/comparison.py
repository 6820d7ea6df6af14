"""Several results beside each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

from mpq.errors import InputError
from mpq.report.measurement import Measurement
from mpq.report.page.facts import BATCH_SIZE, Facts, NetworkFacts, Resource


@final
@dataclass(frozen=True)
class Compared:
    """One layer in every run.

    Args:
        name: Its path.
        precisions: ``[runs]`` its precision in each answer; ``None`` where there is no such layer.
    """

    name: str
    precisions: tuple[str | None, ...]

    @property
    def is_same(self) -> bool:
        """Whether all answers agree."""
        return len(set(self.precisions)) == 1


@final
@dataclass(frozen=True)
class Comparison:
    """What the page of several runs says.

    Args:
        runs: Name of a folder to what its own page says.
        pages: Name of a folder to its own page, from where this one is; empty: it has none.

    Raises:
        InputError: If there are fewer than two.
    """

    runs: Mapping[str, Facts]
    pages: Mapping[str, str]

    def __post_init__(self) -> None:
        if len(self.runs) < 2:
            raise InputError(f"two or more runs are compared; got {len(self.runs)}")

    @property
    def notes(self) -> tuple[str, ...]:
        """Why the runs are not alike, and what of them cannot be compared."""
        return tuple(self._notes())

    def _notes(self) -> Iterator[str]:
        found = list(self.runs.values())
        if len({tuple(layer.name for layer in facts.layers) for facts in found}) > 1:
            yield "These runs are not of the same layers: compare their losses with care."
        if len({(facts.metric, facts.metric_unit) for facts in found}) > 1:
            yield "Losses were measured by different metrics, and cannot be compared."
        if len(self.judges) > 1:
            yield "Scores are by different judges, and cannot be compared."
        held_out = {n.measured.num_examples for facts in found for n in facts.networks}
        if len(held_out) > 1:
            counts = _listed([f"{count:,}" for count in sorted(held_out)])
            yield f"Losses were measured on {counts} examples, which are not the same."
        kinds = dict.fromkeys(facts.solver_loss.name for facts in found)
        if len(kinds) > 1:
            yield f"Losses by the solvers are not of one kind: {_listed(list(kinds))}."
        solved = dict.fromkeys(facts.solver_loss.unit for facts in found)
        if len(solved) > 1:
            units = _listed(list(solved))
            yield f"Losses by the solvers are in {units}, which cannot be compared."
        if len(self.points_names) > 1:
            yield f"Losses of points are not of one kind: {_listed(self.points_names)}."
        if len(self.points_units) > 1:
            units = _listed(self.points_units)
            yield f"Losses of points are in {units}, which cannot be compared."
        yield from self._notes_on_costs()

    def _notes_on_costs(self) -> Iterator[str]:
        if len(set(self.devices)) > 1:
            devices = _listed(list(dict.fromkeys(self.devices)))
            yield f"Costs are those of different devices, and not one machine's: {devices}."
        sizes = dict.fromkeys(dict(facts.made).get(BATCH_SIZE, "") for facts in self.runs.values())
        if len(sizes) > 1:
            counts = _listed([size or "not known" for size in sizes])
            yield f"Latency and energy are for different batch sizes: {counts}."

    @property
    def devices(self) -> tuple[str, ...]:
        """``[runs]`` name of the device that each was priced for."""
        found = (facts.device for facts in self.runs.values())
        return tuple("none" if device is None else device.name for device in found)

    @property
    def points_names(self) -> tuple[str, ...]:
        """What losses of points are, each once."""
        return tuple(dict.fromkeys(facts.points_name for facts in self.runs.values()))

    @property
    def points_units(self) -> tuple[str, ...]:
        """Units of these, each once."""
        return tuple(dict.fromkeys(facts.points_unit for facts in self.runs.values()))

    @property
    def metric_units(self) -> tuple[str, ...]:
        """Units of what was measured on held-out examples, each once."""
        units = (facts.metric_unit for facts in self.runs.values())
        return tuple(dict.fromkeys(filter(None, units)))

    @property
    def resources(self) -> tuple[Resource, ...]:
        """All that any answer costs."""
        found = {x.name: x for facts in self.runs.values() for x in facts.resources}
        return tuple(found.values())

    def answer(self, name: str) -> NetworkFacts | None:
        """What was measured of a run's answer; ``None``: nothing."""
        rows = (network for network in self.runs[name].networks if network.kind == "answer")
        return next(rows, None)

    @property
    def has_scores(self) -> bool:
        """Whether anything was judged by a score of the user's own."""
        return any(found.score is not None for found in self._measured)

    @property
    def has_accuracy(self) -> bool:
        """Whether there were targets in any run."""
        return any(found.accuracy is not None for found in self._measured)

    @property
    def _measured(self) -> Iterator[Measurement]:
        for name, facts in self.runs.items():
            answer = self.answer(name)
            points = (point.measured for point in facts.points)
            yield from filter(None, (None if answer is None else answer.measured, *points))

    @cached_property
    def layers(self) -> tuple[Compared, ...]:
        """Every layer of any run, in the order of the first run that has it."""
        chosen = [_precisions(facts) for facts in self.runs.values()]
        names = dict.fromkeys(name for found in chosen for name in found)
        return tuple(Compared(n, tuple(found.get(n) for found in chosen)) for n in names)

    @property
    def judges(self) -> tuple[tuple[str, bool | None], ...]:
        """Names of scores and which way is better, each once; runs without a score have none."""
        found = ((x.score, x.higher_score_is_better) for x in self.runs.values() if x.score)
        return tuple(dict.fromkeys(found))

    @property
    def has_others(self) -> bool:
        """Whether a run has layers that another one has not."""
        return any(None in layer.precisions for layer in self.layers)

    @property
    def made(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What made them: a name, ``[runs]`` values."""
        found = [dict(facts.made) for facts in self.runs.values()]
        names = dict.fromkeys(name for each in found for name in each)
        rows = ((name, tuple(each.get(name, "") for each in found)) for name in names)
        return (*rows, ("device", self.devices))


def _listed(words: Sequence[str]) -> str:
    """Two or more, as a sentence has them."""
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _precisions(facts: Facts) -> dict[str, str]:
    if not facts.points:
        return {}
    chosen = facts.points[facts.answer].choices
    pairs = zip(facts.layers, chosen, strict=True)
    return {layer.name: layer.choices[place].precision for layer, place in pairs}
