"""Evolutionary solver: NSGA-II through optuna, for any loss that is a function of the choice."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np

from mpq.errors import InputError
from mpq.problem import Choice, Problem
from mpq.progress import track
from mpq.solution import Solution, Status
from mpq.solvers._base import Solver
from mpq.solvers.ilp import IntegerLinearProgram

if TYPE_CHECKING:
    import optuna


@final
@dataclass(frozen=True)
class Evolutionary(Solver):
    """Searches with mutation and crossover; proves nothing itself.

    NSGA-II (Deb et al. 2002, doi:10.1109/4235.996017) as optuna implements it, with the budgets as
    constraints. Departs from it in the first generation: it holds the exact answer of the additive
    problem and the uniform precisions, because seeding matters more than the sampler.

    Args:
        num_trials: Evaluations, seeds included.
        population_size: Individuals in a generation.
        seed: Of every random draw.
        is_seeded: Whether the first generation holds the exact additive answer.
        is_measured: Whether the loss is the KL divergence measured on the calibration examples
            instead of the predicted one; ``mpq.search`` then supplies ``objective``.
        objective: Loss of a choice ``[L]``; ``None``: the problem's own.
    """

    name: ClassVar[str] = "evolutionary"
    summary: ClassVar[str] = "NSGA-II (optuna), for interactions and measured losses; no proof"

    num_trials: int = 1000
    population_size: int = 50
    seed: int = 0
    is_seeded: bool = True
    is_measured: bool = False
    objective: Callable[[Choice], float] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.num_trials < 1 or self.population_size < 2:
            raise InputError(
                "evolutionary needs num_trials >= 1 and population_size >= 2; got "
                f"{self.num_trials} and {self.population_size}"
            )

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``; infeasible problems are recognised exactly, by the ILP.

        Raises:
            InputError: If the loss is to be measured and there is no objective that measures it.
        """
        if self.is_measured and self.objective is None:
            raise InputError("is_measured=true needs a network: use it through mpq.search")
        start = time.perf_counter()
        exact = IntegerLinearProgram().solve(problem.additive())
        if exact.choice is None:
            return replace(exact, solver=self.name)
        choices = self._evolve(problem, exact.choice if self.is_seeded else None)
        feasible = [(loss, choice) for choice, loss in choices if problem.is_feasible(choice)]
        seconds = time.perf_counter() - start
        if not feasible:
            return Solution(Status.UNKNOWN, None, float("nan"), None, self.name, seconds)
        loss, choice = min(feasible, key=lambda pair: pair[0])
        # The additive bound says nothing of a loss that is not additive.
        is_additive = self.objective is None and problem.interactions is None
        bound = min(exact.bound, loss) if is_additive and exact.bound is not None else None
        status = Status.OPTIMAL if bound == loss else Status.FEASIBLE
        return Solution(status, choice, loss, bound, self.name, seconds)

    def _evolve(self, problem: Problem, start: Choice | None) -> list[tuple[Choice, float]]:
        """Every choice ``[L]`` that was tried, with its loss."""
        grouped = problem.grouped
        options = [np.flatnonzero(row).tolist() for row in grouped.allowed]
        loss_of = problem.loss_of if self.objective is None else self.objective
        tried: list[tuple[Choice, float]] = []

        def evaluate(trial: "optuna.Trial") -> float:
            genes = [trial.suggest_categorical(f"g{g}", o) for g, o in enumerate(options)]
            choice = grouped.expand(np.array(genes, dtype=np.intp))
            for budget in problem.budgets:
                scale = max(abs(budget.limit), np.finfo(np.float64).tiny)
                over = 0.0 if budget.is_met(choice) else budget.used(choice) - budget.limit
                trial.set_constraint(budget.table.name, float(over / scale))
            loss = float(loss_of(choice))
            tried.append((choice, loss))
            return loss

        study = self._study()
        for genes in _seeds(problem, start):
            study.enqueue_trial(genes, skip_if_exists=True)
        for _ in track(range(self.num_trials), "evolutionary search"):
            study.optimize(evaluate, n_trials=1)
        return tried

    def _study(self) -> "optuna.Study":
        import optuna  # half a second that other solvers do not need

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.NSGAIISampler(
            population_size=self.population_size, seed=self.seed
        )
        return optuna.create_study(direction="minimize", sampler=sampler)


def _seeds(problem: Problem, start: Choice | None) -> list[dict[str, int]]:
    """First generation: the given choice, then the uniform precisions that are allowed."""
    grouped = problem.grouped
    seeds = []
    if start is not None:
        seeds.append([int(start[rows[0]]) for rows in grouped.members])
    for column in range(grouped.allowed.shape[1]):
        if grouped.allowed[:, column].all():
            seeds.append([column] * len(grouped.members))
    return [{f"g{group}": column for group, column in enumerate(seed)} for seed in seeds]
