"""Proxies found by evolution: formulas whose order of assignments is that of measured losses."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Final, Self, final

import numpy as np
from torch import Tensor

from mpq._support.arrays import Array
from mpq._support.bounds import check_whole
from mpq._support.events import Callback, listening
from mpq._support.phases import phase
from mpq._support.progress import track
from mpq.callbacks.plans import tell_plan
from mpq.errors import InputError, MismatchError
from mpq.report.evolved_proxy import EvolvedProxy
from mpq.report.loss_benchmark import LossBenchmark
from mpq.sensitivity.formula import INPUTS, Formula
from mpq.sensitivity.formula_variation import crossed, drawn, mutated, why_incompatible
from mpq.sensitivity.passes.labels import check_labels
from mpq.sensitivity.passes.weight_statistics import weight_statistics
from mpq.sensitivity.weight_error import channel_errors, relative_errors
from mpq.workflows.defaults import NUM_GENERATIONS, NUM_PROXIES
from mpq.workflows.outcome import announced
from mpq.workflows.setup import Prepared
from mpq.workflows.streamable import refuse_streamed
from mpq.workflows.task import Task, check_task

HANDCRAFTED: Final = (
    "sum(abs(g*w))",  # SNIP
    "norm(g)",
    "norm(w)",
    "sum(h*square(w))",  # Fisher information of the layer's weights
    "mean(h)*sum(square(w))",  # HAWQ-V2's, as errors are relative to the squared norm
    "sum(square(a*w))",  # what GPTQ and BAQ keep small
)
"""Where evolution begins, beside random formulas."""
GENERATIONS: Final = "generations"
_SAMPLE: Final = 5
"""Formulas that two parents are chosen from."""
_FRESH, _CROSSED = 0.1, 0.5
"""Shares of children that are drawn anew, and of the others that are crossed."""
_ATTEMPTS: Final = 50
"""At a child that is not screened out."""
_SAME: Final = 0.999
"""Rank correlation of predictions above which only the better of two formulas stays."""


def evolve_proxy(
    on: Sequence[tuple[Task, LossBenchmark]],
    *,
    generations: int = NUM_GENERATIONS,
    population: int = NUM_PROXIES,
    labels: str = "sampled",
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
) -> EvolvedProxy:
    """Searches a formula for ``zero-cost`` that ranks measured assignments as they were measured.

    As EMQ does (Dong et al. 2023, arXiv:2307.10554): expressions over weights, gradients, inputs
    and curvature are a population that is crossed and mutated. Selection prompts diversity: of a
    few drawn formulas the best is one parent, and the one whose predictions are least like its own
    the other; some children are drawn anew; of formulas that rank alike one survives. Screening
    leaves out, before anything is correlated, what does not go together (``abs`` of a square), is
    no finite number or the same for all layers, or ranks as one does that was tried. Fitness is
    Spearman's correlation with the measured losses, its mean over benchmarks, without assignments
    that lose more than ``max_loss``. Departs from the paper in that importances weigh relative
    rounding errors, as of all proxies here (``importance_table``), and in sizes and rates, which
    are ours.

    Args:
        on: Networks with their data, as in ``mpq.search``, each with a benchmark of it.
        generations: How often the population is renewed.
        population: Formulas in it; as many children come with each generation.
        labels: Whose labels gradients are taken for; see ``ZeroCost``.
        seed: Of every draw, of labels as well.
        callbacks: Who is told what happens meanwhile (``mpq.callbacks``): none changes the answer.

    Raises:
        InputError: If there is no benchmark, a number is too small, or a benchmark has fewer than
            three assignments that count, or layers that no formula tells apart.
        MismatchError: If a benchmark is of another network.
    """
    check_whole("generations", generations)
    check_whole("population", population)
    check_labels(labels)
    if not on or generations < 1 or population < len(HANDCRAFTED):
        raise InputError(
            f"give a benchmark, generations >= 1 and population >= {len(HANDCRAFTED)}; got "
            f"{len(on)}, {generations} and {population}"
        )
    with listening(callbacks):
        with phase("statistics"):
            arenas = [
                _Arena.of(task, benchmark, labels, seed, _told(place, len(on)))
                for place, (task, benchmark) in enumerate(track(on, "benchmarks"))
            ]
        with phase(GENERATIONS):
            start = perf_counter()
            evolution = _Evolution(arenas, population, np.random.default_rng(seed))
            # The first population is as many formulas as come with each generation.
            tell_plan({GENERATIONS: generations * (perf_counter() - start)})
            best = [evolution.renew() for _ in track(range(generations), GENERATIONS)]
        found = evolution.ranked[0]
        known = {text: _spearman(arenas, Formula.parse(text)) for text in HANDCRAFTED}
        return announced(
            EvolvedProxy(
                str(found.formula), labels, _spearman(arenas, found.formula), known, tuple(best),
                len(evolution.seen), dict(sorted(evolution.screened.items())), seed,
            )
        )  # fmt: skip


@final
@dataclass(frozen=True, eq=False)
class _Arena:
    """One network with its benchmark, as formulas need it.

    Args:
        inputs: ``[L]`` what formulas read of every layer.
        errors: ``[T, L]`` relative rounding error of every layer in each assignment.
        target: ``[T]`` centred ranks of the measured losses, of length 1.
    """

    inputs: tuple[dict[str, Tensor], ...]
    errors: Array
    target: Array

    @classmethod
    def of(cls, task: Task, benchmark: LossBenchmark, labels: str, seed: int, which: str) -> Self:
        """Looks at the network once; errors say ``which`` of several it is."""
        check_task(task, "evolve_proxy")
        refuse_streamed(task, "evolve-proxy")
        prepared = Prepared.untransformed(replace(task, candidates=list(benchmark.candidates)))
        _check(prepared, benchmark, which)
        on, rows = prepared.asked, benchmark.counted
        found = weight_statistics(on, INPUTS, labels, seed)
        inputs = tuple({k: x.double() for k, x in found[name].items()} for name in on.names)
        errors = relative_errors(on, channel_errors(on))  # [L, B]
        columns = np.array([row.columns for row in rows])
        taken = errors[np.arange(len(errors)), columns]
        return cls(inputs, taken, _ranks(np.array([row.loss for row in rows])))

    def ranks(self, formula: Formula) -> Array | None:
        """``[T]`` centred ranks of its predictions, of length 1; ``None``: they say nothing."""
        importance = np.array([formula.importance(one) for one in self.inputs])
        with np.errstate(all="ignore"):
            predicted = self.errors @ importance
            is_same = np.ptp(importance) <= 1e-9 * np.abs(importance).max()
        if not np.isfinite(predicted).all() or is_same:
            return None
        return _ranks(predicted)


def _told(place: int, count: int) -> str:
    return "the benchmark" if count == 1 else f"benchmark {place + 1} of {count}"


def _check(prepared: Prepared, benchmark: LossBenchmark, which: str) -> None:
    is_another = prepared.network.fingerprint != benchmark.fingerprint
    if is_another or tuple(benchmark.layers) != tuple(prepared.asked.names):
        raise MismatchError(
            f"{which} is of another network, or of other layers of it (--include, --exclude): it "
            f"has {len(benchmark.layers)}, the first of them {benchmark.layers[0]!r}, and the "
            f"network {len(prepared.asked.names)}, the first of them {prepared.asked.names[0]!r}; "
            "give the network that mpq compare was called with, in the order of the benchmarks"
        )
    losses = {row.loss for row in benchmark.counted}
    if len(losses) < 3:
        raise InputError(
            f"{which} has {len(benchmark.counted)} assignments that lose at most "
            f"{benchmark.max_loss} {benchmark.unit}, with {len(losses)} different losses; at least "
            "3 have a rank correlation (mpq compare --random, --max-loss, --limit)"
        )


def _ranks(values: Array) -> Array:
    """Centred ranks of length 1, whose products are Spearman's correlation; 0 where all tie."""
    # Imported here: it takes tenths of a second.
    from scipy.stats import rankdata

    centred = rankdata(values) - (len(values) + 1) / 2
    length = float(np.linalg.norm(centred))
    return np.asarray(centred / length if length else centred)


def _spearman(arenas: Sequence[_Arena], formula: Formula) -> tuple[float, ...]:
    found = (arena.ranks(formula) for arena in arenas)
    return tuple(
        float("nan") if ranks is None else float(ranks @ arena.target)
        for ranks, arena in zip(found, arenas, strict=True)
    )


@final
@dataclass(frozen=True, eq=False)
class _Tried:
    """A formula that was looked at.

    Args:
        formula: The formula.
        ranks: Of its predictions, over all benchmarks one after the other.
        fitness: Mean rank correlation.
    """

    formula: Formula
    ranks: Array
    fitness: float


@final
@dataclass(eq=False)
class _Evolution:
    """A population of formulas; changes.

    Args:
        arenas: Where they are looked at.
        size: How many survive.
        rng: Of every draw.
    """

    arenas: Sequence[_Arena]
    size: int
    rng: np.random.Generator
    screened: Counter[str] = field(default_factory=Counter)
    seen: set[bytes] = field(default_factory=set)
    ranked: list[_Tried] = field(default_factory=list)

    def __post_init__(self) -> None:
        begun = [self._tried(Formula.parse(text)) for text in HANDCRAFTED]
        self._survive(begun + [self._child(is_fresh=True) for _ in range(self.size - len(begun))])
        # Of one layer, or of layers without a gradient, there is nothing to tell apart.
        if not self.ranked:
            told = ", ".join(f"{count} {reason}" for reason, count in self.screened.items())
            raise InputError(
                f"no formula tells the layers of a benchmark apart ({told}): give a benchmark of "
                "at least two layers that the output depends on (--include, --exclude)"
            )

    def renew(self) -> float:
        """One generation; the best fitness after it."""
        self._survive([self._child() for _ in range(self.size)])
        return self.ranked[0].fitness

    def _survive(self, children: Sequence[_Tried | None]) -> None:
        every = self.ranked + [child for child in children if child is not None]
        # Of equals the shorter one; by text at last, so that the order is one.
        every.sort(key=lambda x: (-round(x.fitness, 9), len(str(x.formula)), str(x.formula)))
        kept: list[_Tried] = []
        for one in every:
            if all(self._likeness(one, other) < _SAME for other in kept):
                kept.append(one)
        self.ranked = kept[: self.size]

    def _child(self, is_fresh: bool = False) -> _Tried | None:
        for _ in range(_ATTEMPTS):
            found = self._tried(self._varied(is_fresh))
            if found is not None:
                return found
        return None

    def _varied(self, is_fresh: bool) -> Formula:
        if is_fresh or len(self.ranked) < 2 or self.rng.random() < _FRESH:
            return drawn(self.rng)
        count = min(_SAMPLE, len(self.ranked))
        # The best comes first in the population, and so in a sorted sample.
        sample = np.sort(self.rng.choice(len(self.ranked), count, replace=False)).tolist()
        first, *others = (self.ranked[i] for i in sample)
        second = min(others, key=lambda other: self._likeness(first, other))
        if self.rng.random() < _CROSSED:
            return crossed(first.formula, second.formula, self.rng)
        return mutated(first.formula, self.rng)

    def _tried(self, formula: Formula) -> _Tried | None:
        """``None``: it is screened out."""
        reason = why_incompatible(formula)
        if reason is not None:
            self.screened[reason] += 1
            return None
        found = []
        for arena in self.arenas:
            ranks = arena.ranks(formula)
            if ranks is None:
                self.screened["not finite, or the same for all layers"] += 1
                return None
            found.append(ranks)
        key = np.concatenate(found).round(6).tobytes()
        if key in self.seen:
            self.screened["ranks as another"] += 1
            return None
        self.seen.add(key)
        pairs = zip(found, self.arenas, strict=True)
        fitness = float(np.mean([ranks @ arena.target for ranks, arena in pairs]))
        return _Tried(formula, np.concatenate(found), fitness)

    def _likeness(self, first: _Tried, second: _Tried) -> float:
        """Mean rank correlation of their predictions."""
        return float(first.ranks @ second.ranks) / len(self.arenas)
