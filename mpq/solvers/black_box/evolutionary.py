"""Evolutionary solver: NSGA-II for any loss that is a function of the choice."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, final

import numpy as np
import numpy.typing as npt

from mpq._support.arrays import Array, Columns
from mpq.errors import InputError, UnknownNameError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.solvers._base import Losses
from mpq.solvers.additive.answers import check_effort
from mpq.solvers.black_box._base import MeasuringSolver, Run
from mpq.solvers.black_box.population import Assignments, Space, survivors
from mpq.solvers.black_box.study import Trials

OBJECTIVES = ("loss", "loss+costs")
"""What may be minimised: the loss alone, or also what every budget counts."""
_ATTEMPTS = 8
"""Times that children are drawn, twice as many as wanted, until enough of them are new."""


@final
@dataclass(frozen=True)
class Evolutionary(MeasuringSolver):
    """Searches with crossover and mutation; proves nothing itself.

    NSGA-II (Deb et al. 2002, doi:10.1109/4235.996017). Departs from it in three ways. Budgets are
    no constraints among which to select: children are repaired until they hold, because costs are
    known before anything is measured. No assignment is evaluated twice. And the search begins at
    the exact additive answer, its convex hull and the uniform precisions: seeding matters more
    than the sampler.

    Generations are array arithmetic, because optuna's own NSGA-II suggests one layer of one
    assignment at a time, several times as slowly (``benchmarks/evolution.json``), and batches are
    what is measured; optuna keeps the trials, where there is a storage.

    Args:
        num_trials: Evaluations in all, seeds and those that the storage holds included.
        population_size: Survivors of a generation.
        batch_size: Children of a generation, evaluated at once.
        seed: Seed of every random draw.
        is_seeded: Whether the search begins at the solved assignments, or at random.
        is_measured: Whether the loss is the KL divergence measured on the calibration examples
            instead of the predicted one; ``mpq.search`` then supplies ``objective``.
        objectives: ``loss``, or ``loss+costs``: also what every budget counts, so that one run
            gives a whole frontier; see ``front``.
        storage: A path such as ``search.log`` or a database URL such as ``sqlite:///search.db``
            that keeps the trials: the same call resumes where it ended, and several processes or
            machines, each with a seed of its own, may share one study. Empty: in memory.
        study: Name in the storage; one problem each.
        starts: Further assignments to begin at, ``[L]`` columns each.
        time_limit_s: Wall time in seconds, or ``None``: as long as it takes. No trial begins
            afterwards; the best so far is the answer, and the same call goes on from the storage.
        objective: Losses of a batch; ``None``: the problem's own.
    """

    name: ClassVar[str] = "evolutionary"
    summary: ClassVar[str] = "NSGA-II, for interactions, measured losses and frontiers; no proof"

    num_trials: int = 1000
    population_size: int = 30
    batch_size: int = 10
    seed: int = 0
    is_seeded: bool = True
    is_measured: bool = False
    objectives: str = "loss"
    storage: str = ""
    study: str = "mpq"
    starts: tuple[tuple[int, ...], ...] = ()
    time_limit_s: float | None = None
    objective: Losses | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_effort(self.name, 0.0, self.time_limit_s)
        if self.num_trials < 1 or self.population_size < 2:
            raise InputError(
                "evolutionary needs num_trials >= 1 and population_size >= 2; got "
                f"{self.num_trials} and {self.population_size}"
            )
        if self.batch_size < 1 or self.seed < 0:
            raise InputError(
                "evolutionary needs batch_size >= 1 and seed >= 0; got "
                f"{self.batch_size} and {self.seed}"
            )
        if self.objectives not in OBJECTIVES:
            raise UnknownNameError("choice of objectives", self.objectives, OBJECTIVES)

    def bind(self, losses: Losses) -> Self:
        """See ``Solver.bind``."""
        return replace(self, objective=losses)

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; infeasible problems are recognised exactly.

        Raises:
            InputError: If the loss is to be measured and there is no objective that measures it,
                or the storage cannot be used.
            MismatchError: If the study belongs to another problem.
            SolverError: If the storage fails on the way, or a loss is ``nan``.
        """
        return self._run(problem).solve(self._proposer)

    def check(self) -> None:
        """Refuses a front that would be searched for again when it is asked for.

        Raises:
            InputError: If the costs are objectives of a measured search, or of one that ends by the
                clock, whose trials are kept nowhere.
        """
        is_repeated_in_vain = self.is_measured or self.time_limit_s is not None
        if is_repeated_in_vain and self.objectives != "loss" and not self.storage:
            raise InputError(
                "objectives=loss+costs needs storage=search.log, or a database URL, where losses "
                "are measured or the time is limited: the frontier is read from the trials that it "
                "keeps"
            )

    def front(self, problem: Problem) -> list[tuple[Columns, Array]]:
        """Assignments within the budgets that no other trial betters in loss and costs.

        Returns:
            By rising loss, the choice ``[L]`` and its values ``[K]``: the loss, then what it uses
            of every budget, in the budgets' order and units. None if the problem is infeasible.

        Raises:
            InputError: If the costs are no objectives; else as ``solve``.
        """
        if self.objectives == "loss":
            raise InputError("a front needs the costs as objectives: objectives=loss+costs")
        return self._run(problem).front(self._proposer)

    def found_frontier(self, problem: Problem) -> tuple[Solution, ...] | None:
        """See ``Solver.found_frontier``: ``front``, where the costs are objectives.

        Of a search that its time limit has ended, what the storage holds.
        """
        if self.objectives == "loss":
            return None
        is_over = self.storage and self.time_limit_s is not None
        # The time is spent: another search as long would find what the answer was not chosen from.
        found = replace(self, num_trials=1) if is_over else self
        return tuple(
            Solution(Status.FEASIBLE, columns, float(values[0]), None, self.name, 0.0)
            for columns, values in found.front(problem)
        )

    def _run(self, problem: Problem) -> Run:
        has_costs = self.objectives != "loss"
        # A frontier begins at the whole hull, a single loss at as many as survive.
        num_seeds = None if has_costs else self.population_size
        return Run(self, problem, num_seeds, has_costs)

    def _proposer(self, space: Space) -> "_Generations":
        return _Generations(space, self.population_size, self.batch_size)


@final
class _Generations:
    """Children of the survivors of all trials so far.

    Args:
        space: Search space of the problem.
        population_size: How many trials survive each selection.
        batch_size: Trials after which survivors are selected.
    """

    def __init__(self, space: Space, population_size: int, batch_size: int) -> None:
        self._space = space
        self._population_size = population_size
        self._batch_size = batch_size
        self._alive = np.empty(0, dtype=np.intp)
        self._selected = 0

    def __call__(self, trials: Trials, rng: np.random.Generator, count: int) -> Assignments:
        """See ``Propose``; random assignments until there is a population."""
        parents = trials.assignments[self._population(trials)]
        found = parents[:0]
        for attempt in range(_ATTEMPTS):
            # The last attempt finds what is left where nearly everything was tried.
            if len(trials) < self._population_size or attempt == _ATTEMPTS - 1:
                more = self._space.random(2 * count, rng)
            else:
                more = self._space.children(parents, 2 * count, rng)
            # Children may be known already: they differ from a survivor in few groups.
            found = trials.unknown(np.concatenate([found, more]))
            if len(found) >= count:
                break
        return found

    def _population(self, trials: Trials) -> npt.NDArray[np.intp]:
        """Rows of the survivors, batch after batch: the same whether or not it was interrupted."""
        # From the survivors of the batch before: no generation sorts all trials anew.
        while self._selected + self._batch_size <= len(trials):
            end = self._selected + self._batch_size
            self._alive = self._survivors(trials, end)
            self._selected = end
        return self._survivors(trials, len(trials))

    def _survivors(self, trials: Trials, end: int) -> npt.NDArray[np.intp]:
        rows = np.concatenate([self._alive, np.arange(self._selected, end)])
        return rows[survivors(trials.values[rows], self._population_size)]
