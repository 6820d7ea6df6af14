"""What solvers of measured losses share: their interface, and the loop over batches of trials."""

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self, final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq._support.progress import track
from mpq.errors import InputError, SolverError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.solvers._base import Losses, MeasuredLosses, Solver
from mpq.solvers.additive.answers import check_effort
from mpq.solvers.additive.default import solve_additive
from mpq.solvers.black_box import seeds
from mpq.solvers.black_box.pace import Pace
from mpq.solvers.black_box.population import Assignments, Space, nondominated
from mpq.solvers.black_box.study import Store, TrialLog, Trials

_TIE = 1e-12
"""Relative distance of losses below which the problem's own arithmetic decides."""


class MeasuringSolver(Solver):
    """A solver for losses that are neither a sum nor a quadratic form, such as the measured one.

    Without an objective it minimises the problem's own predicted loss. The options that all of them
    have are said in ``Evolutionary``.
    """

    num_trials: int
    batch_size: int
    seed: int
    is_seeded: bool
    is_measured: bool
    storage: str
    study: str
    starts: tuple[tuple[int, ...], ...]
    time_limit_s: float | None
    objective: Losses | None
    is_repeatable: ClassVar[bool] = False

    @property
    def is_measuring(self) -> bool:
        """See ``Solver.is_measuring``: as the option says."""
        return self.is_measured

    def measuring_s(self, each_s: float) -> float:
        """See ``Solver.measuring_s``: of all trials, or as long as the time limit."""
        limit = math.inf if self.time_limit_s is None else self.time_limit_s
        return min(self.num_trials * each_s, limit)

    @abstractmethod
    def bind(self, losses: Losses) -> Self:
        """See ``Solver.bind``."""


def check_trials(solver: MeasuringSolver) -> None:
    """Refuses options of all solvers of measured losses that make no sense.

    Raises:
        InputError: If there is no trial, an empty batch, a seed below 0, or a time limit that is no
            positive number.
    """
    check_effort(solver.name, 0.0, solver.time_limit_s)
    if min(solver.num_trials, solver.batch_size) < 1 or solver.seed < 0:
        raise InputError(
            f"{solver.name} needs num_trials >= 1, batch_size >= 1 and seed >= 0; got "
            f"{solver.num_trials}, {solver.batch_size} and {solver.seed}"
        )


def require_objective(is_measured: bool, objective: Losses | None) -> None:
    """Refuses to take the predicted loss where the measured one was asked for.

    Raises:
        InputError: If the loss is to be measured and there is no objective that measures it.
    """
    if is_measured and objective is None:
        raise InputError("is_measured=true needs a network: use it through mpq.search")


def asked_losses(name: str, objective: Losses, layers: Columns) -> Array:
    """``[P]`` losses of assignments ``[P, L]``, which an objective may write into.

    Args:
        name: Of the solver that asks, for messages.
        objective: The user's, or the problem's own loss.
        layers: Columns of every layer.

    Raises:
        InputError: If it does not return one loss for each assignment.
        SolverError: If a loss is ``nan``.
    """
    # A copy: a message below shows what was asked, and solvers go on with it.
    losses = np.asarray(objective(layers.copy()), dtype=np.float64)
    if losses.shape != (len(layers),):
        raise InputError(
            f"{name}: an objective returns one loss for each of the {len(layers)} assignments of "
            f"a batch; got the shape {losses.shape}"
        )
    if np.isnan(losses).any():
        first = layers[np.isnan(losses)][0].tolist()
        raise SolverError(f"{name}: the loss of the assignment {first} is nan")
    return losses


def depends_of(objective: Losses | None) -> Mapping[str, str] | None:
    """What measured losses depend on, as far as they say so; ``None``: losses are predicted."""
    if objective is None:
        return None
    return objective.told() if isinstance(objective, MeasuredLosses) else {}


class Propose(Protocol):
    """How a search goes on after some trials."""

    def __call__(self, trials: Trials, rng: np.random.Generator, count: int) -> Assignments:
        """``count`` or more assignments ``[P, G]`` within the budgets, the most promising first."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Run:
    """One search: what is minimised, from where, and where its trials are kept.

    Only assignments within the budgets are evaluated, and none twice: costs are known before.

    Args:
        solver: Whose options say what is minimised, from where, and where trials are kept; it has
            checked them.
        problem: The problem, of which groups, budgets and the predicted loss are used.
        num_seeds: Solved assignments to begin at: those of the least predicted loss; ``None``: all.
        has_costs: Whether what the budgets count are objectives beside the loss.
    """

    solver: MeasuringSolver
    problem: Problem
    num_seeds: int | None
    has_costs: bool = False

    def __post_init__(self) -> None:
        require_objective(self.solver.is_measured, self.solver.objective)

    def solve(self, propose: Callable[[Space], Propose]) -> Solution:
        """The best trial; an infeasible problem is recognised exactly."""
        start, pace = time.perf_counter(), Pace(self.solver.time_limit_s)
        exact = solve_additive(self.problem, self.solver.time_limit_s)
        if exact.columns is None:
            return replace(exact, solver=self.solver.name)
        best = self._best(self._trials(propose, exact.columns, pace), exact)
        if pace.was_stopped and best.status is Status.FEASIBLE:
            best = replace(best, status=Status.TIME_LIMIT)
        return replace(best, seconds=time.perf_counter() - start)

    def front(self, propose: Callable[[Space], Propose]) -> list[tuple[Columns, Array]]:
        """Choice ``[L]`` and values ``[K]`` of the trials that none other betters."""
        pace = Pace(self.solver.time_limit_s)
        exact = solve_additive(self.problem, self.solver.time_limit_s)
        if exact.columns is None:
            return []
        trials = self._trials(propose, exact.columns, pace)
        first = np.flatnonzero(nondominated(trials.values))
        first = first[np.lexsort(trials.values[first].T[::-1])]
        layers = Space.of(self.problem).layers(trials.assignments[first])
        return list(zip(layers, trials.values[first], strict=True))

    def _trials(self, propose: Callable[[Space], Propose], exact: Columns, pace: Pace) -> Trials:
        solver = self.solver
        space = Space.of(self.problem, is_informed=solver.is_seeded or bool(solver.starts))
        num_values = 1 + (len(self.problem.grouped.limits) if self.has_costs else 0)
        begin = self._begin(space, exact)
        depends = depends_of(solver.objective) if solver.storage else None
        opened = Store.open(solver.storage, solver.study, space, num_values, depends)
        log = TrialLog(space.num_groups, num_values)
        with closing(opened) as store:
            # Trials that the storage holds count, and may already be as many as were asked for.
            store.read(log)
            rounds = self._rounds(log, begin, propose(space), pace)
            evaluated = self._evaluated(space, log, store, rounds, pace)
            for _ in track(evaluated, f"{solver.name} search", total=solver.num_trials):
                pass
        return log.all()

    def _begin(self, space: Space, exact: Columns) -> Assignments:
        """``[P, G]`` the assignments to begin at."""
        given = seeds.given(space, self.solver.starts, self.solver.name)
        if not self.solver.is_seeded:
            return given
        # A stream of its own, apart from those of `_next`.
        rng = np.random.default_rng([self.solver.seed, 0])
        solved = seeds.solved(space, exact, rng)
        if self.num_seeds is not None:
            guess = predicted(self.problem.additive())(space.layers(solved))
            solved = solved[np.argsort(guess, kind="stable")[: self.num_seeds]]
        # Processes that share a study begin at different seeds, but for the first.
        solved[1:] = rng.permutation(solved[1:])
        return np.concatenate([solved[:1], given, solved[1:]])

    def _rounds(
        self, log: TrialLog, begin: Assignments, propose: Propose, pace: Pace
    ) -> Iterator[Assignments]:
        """``[P, G]`` batch after batch, each once the one before is in the log."""
        while (missing := self.solver.num_trials - len(log)) > 0 and not pace.stops(len(log)):
            batch = self._next(log, begin, propose)[:missing]
            if not len(batch):
                return  # there is nothing left that was not tried
            yield batch

    def _evaluated(
        self,
        space: Space,
        log: TrialLog,
        store: Store,
        rounds: Iterator[Assignments],
        pace: Pace,
    ) -> Iterator[int]:
        """Evaluates batch after batch; one item for every trial."""
        evaluate = self._evaluation(space)
        yield from range(min(len(log), self.solver.num_trials))
        for batch in rounds:
            left = batch
            while len(left) and not pace.stops(len(log)):
                part, start = left[: pace.num_fitting], time.perf_counter()
                store.write(log, part, evaluate(part))
                pace.took(time.perf_counter() - start, len(part))
                yield from range(len(part))
                left = left[len(part) :]

    def _next(self, log: TrialLog, begin: Assignments, propose: Propose) -> Assignments:
        """``[P, G]`` assignments that nobody has tried.

        They depend on the seed and on whole batches of earlier trials only, so that a search that
        ended within a batch is resumed as if it had not.
        """
        whole = len(log) - len(log) % self.solver.batch_size
        # The rest of an interrupted batch comes second, where whole batches lead to nothing new.
        for known in dict.fromkeys((whole, len(log))):
            earlier = log.first(known)
            batch = earlier.unknown(begin)[: self.solver.batch_size]
            if len(batch) < self.solver.batch_size:
                # By the number of trials, not one generator kept: a resumed search draws the same.
                rng = np.random.default_rng([self.solver.seed, 1, known])
                more = propose(earlier, rng, self.solver.batch_size)
                batch = earlier.unknown(np.concatenate([batch, more]))[: self.solver.batch_size]
            fresh = log.all().unknown(batch)
            if len(fresh):
                return fresh
        return begin[:0]

    def _evaluation(self, space: Space) -> Callable[[Assignments], Array]:
        """Values ``[P, K]`` of choices ``[P, G]``: the loss, then what each budget counts."""
        objective = (
            predicted(self.problem) if self.solver.objective is None else self.solver.objective
        )
        grouped = self.problem.grouped
        groups = np.arange(space.num_groups)

        def evaluate(assignments: Assignments) -> Array:
            losses = asked_losses(self.solver.name, objective, space.layers(assignments))
            if not self.has_costs:
                return losses[:, None]
            # Costs in the user's units: `Space` has its own.
            used = grouped.costs[:, groups, assignments].sum(axis=2).T  # [P, R]
            return np.column_stack([losses, used + grouped.pairwise.cost(assignments)[:, 1:]])

        return evaluate

    def _best(self, trials: Trials, exact: Solution) -> Solution:
        grouped, losses = self.problem.grouped, trials.values[:, 0]
        is_predicted = self.solver.objective is None
        found: tuple[float, Columns] | None = None
        for row in np.argsort(losses, kind="stable"):
            if found is not None and losses[row] > found[0] + _TIE * abs(found[0]):
                break
            columns = grouped.expand(trials.assignments[row])
            # What another process wrote into the study is checked like the rest.
            if not self.problem.is_feasible(columns):
                continue
            # A batch sums in another order: ties are decided by the correctly rounded sum.
            loss = self.problem.loss_of(columns) if is_predicted else float(losses[row])
            found = (loss, columns) if found is None or loss < found[0] else found
        if found is None:
            return Solution(Status.UNKNOWN, None, float("nan"), None, self.solver.name, 0.0)
        loss, columns = found
        # The additive bound says nothing of a loss that is not additive.
        is_additive = is_predicted and self.problem.interactions is None
        bound = min(exact.bound, loss) if is_additive and exact.bound is not None else None
        status = Status.OPTIMAL if bound == loss else Status.FEASIBLE
        return Solution(status, columns, loss, bound, self.solver.name, 0.0)


def predicted(problem: Problem) -> Losses:
    """The problem's own loss of a batch, up to the order of its sums."""
    table, interactions = problem.loss.values, problem.interactions
    every, row_of = np.arange(len(table)), {name: i for i, name in enumerate(problem.loss.layers)}

    def losses(assignments: Columns) -> Array:
        additive = table[every, assignments].sum(axis=1) + problem.loss.constant
        for pair in problem.loss.pairs:
            first, second = assignments[:, row_of[pair.first]], assignments[:, row_of[pair.second]]
            additive += pair.values[first, second]
        if interactions is None:
            return np.asarray(additive)
        # Layer by layer, in float64: all at once would be [S, P, L] numbers.
        sums = np.zeros((len(interactions.factor), len(assignments)))  # [S, P]
        for layer, columns in enumerate(assignments.T):
            sums += interactions.factor[:, layer, columns]
        together = 0.5 * (sums**2).mean(axis=0)
        alone = interactions.alone[every, assignments].sum(axis=1)
        return np.asarray(additive + (1 - interactions.shrinkage) * (together - alone))

    return losses
