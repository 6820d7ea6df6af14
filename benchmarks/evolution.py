"""Searches for measured losses: how near they come, how soon, and what an evaluation costs them.

    OMP_NUM_THREADS=1 python benchmarks/evolution.py > benchmarks/evolution.json

Additive: 54 layers at 4 precisions with one budget at 4.5 of 8 bits, so that the exact optimum is
known; percent above it, and the first evaluation within 1 %. "hull" begins at the convex hull of
the table (repaired, without the exact answer); repairs then lean towards the predicted loss,
which on this problem is the true one. "random" begins at nothing and is shown no prediction, with
a population of 100 and batches of 50. Other losses, of the same size: "paired" has
layers that are off by factors and pairs that add up or cancel; "ruled" multiplies the loss by what
three rules about neighbouring layers say, which no part of the surrogate's model describes.
Evaluations until within some percent of the best that any search here found, from the same seeds,
the exact additive answer among them; null: not reached. Overhead: milliseconds for each evaluation
beside the evaluation itself.
"""

import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.solvers import IntegerLinearProgram
from mpq.solvers.black_box import seeds
from mpq.solvers.black_box.bayesian import Bayesian
from mpq.solvers.black_box.evolutionary import Evolutionary
from mpq.solvers.black_box.population import Space
from mpq.solvers.black_box.surrogate import Surrogate

NUM_LAYERS = 54
PRECISIONS = tuple(map(Precision.parse, ("w2a8", "w4a8", "w6a8", "w8a8")))
BITS = np.array([2.0, 4.0, 6.0, 8.0])
NUM_EARLY = 3000
WITHIN = (0.01, 0.02, 0.05)
Floats = npt.NDArray[np.float64]
Objective = Callable[[npt.NDArray[np.intp]], Floats]
Solver = Evolutionary | Bayesian | Surrogate


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    result = {
        "additive": [additive(seed) for seed in range(6)],
        "bayesian_additive": bayesian_additive(),
        "optuna_nsga2_additive": optuna_nsga2(),
        "overhead_ms": overhead(),
        "paired": [other(paired, seed) for seed in range(2)],
        "ruled": [other(ruled, seed) for seed in range(2)],
        "optuna": optuna.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(result, indent=1))


def problem_of(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    names = tuple(f"layer{i}" for i in range(NUM_LAYERS))
    size = rng.lognormal(10, 1, (NUM_LAYERS, 1))
    spread = rng.lognormal(0, 1.5, (NUM_LAYERS, 1)) * rng.lognormal(0, 0.3, (NUM_LAYERS, 4))
    loss = -np.sort(-16 * spread * 2.0**-BITS, axis=1)
    cost = CostTable("weight_bytes", "bytes", names, PRECISIONS, size * BITS / 8)
    budget = Budget.of(cost, float(size.sum() * 4.5 / 8))
    return Problem(CostTable("loss", "nats", names, PRECISIONS, loss), Constraints((budget,)))


def sum_of(problem: Problem) -> Objective:
    table, every = problem.loss.values, np.arange(NUM_LAYERS)
    return lambda candidates: np.asarray(table[every, candidates].sum(axis=1))


def paired(problem: Problem, seed: int) -> Objective:
    rng = np.random.default_rng([seed, 1])
    table = problem.loss.values * rng.lognormal(0, 0.6, (NUM_LAYERS, 1))
    table *= rng.lognormal(0, 0.3, table.shape)
    mixing = 0.6 * rng.standard_normal((40, NUM_LAYERS)) + 0.3 * rng.standard_normal((40, 1))

    def loss(candidates: npt.NDArray[np.intp]) -> Floats:
        alone = table[np.arange(NUM_LAYERS), candidates]
        together = ((np.sqrt(2 * alone) @ mixing.T) ** 2).mean(axis=1)
        return np.asarray(30 * np.log1p((0.7 * alone.sum(axis=1) + 0.25 * together) / 30))

    return loss


def ruled(problem: Problem, seed: int) -> Objective:
    rng = np.random.default_rng([seed, 2])
    table = problem.loss.values * rng.lognormal(0, 0.3, problem.loss.values.shape)

    def loss(candidates: npt.NDArray[np.intp]) -> Floats:
        steps = np.abs(np.diff(candidates, axis=1))
        lowest_together = ((candidates[:, 1:] == 0) & (candidates[:, :-1] == 0)).sum(axis=1)
        factor = 1 + 0.01 * (steps == 3).sum(axis=1) + 0.03 * lowest_together
        factor += 0.2 * (candidates[:, 0] < 2)
        return np.asarray(table[np.arange(NUM_LAYERS), candidates].sum(axis=1) * factor)

    return loss


def trace(solver: Solver, problem: Problem, objective: Objective) -> tuple[Floats, float]:
    """Best loss after every evaluation, and milliseconds for each beside the evaluation."""
    losses: list[float] = []
    busy = 0.0

    def recorded(candidates: npt.NDArray[np.intp]) -> Floats:
        nonlocal busy
        start = time.perf_counter()
        values = objective(candidates)
        losses.extend(values.tolist())
        busy += time.perf_counter() - start
        return values

    start = time.perf_counter()
    solver.bind(recorded).solve(problem)
    spent = time.perf_counter() - start - busy
    return np.minimum.accumulate(losses), round(1e3 * spent / len(losses), 3)


def reached(best: Floats, goal: float) -> int | None:
    below = np.flatnonzero(best <= goal)
    return int(below[0]) + 1 if len(below) else None


def hull_of(problem: Problem) -> tuple[tuple[int, ...], ...]:
    space = Space.of(problem)
    hull = space.repaired(seeds.hull(problem), np.random.default_rng(0))
    return tuple(tuple(row) for row in space.layers(hull).tolist())


def distance(best: Floats, exact: float) -> dict[str, Any]:
    percent = round(100 * (float(best[-1]) / exact - 1), 3)
    return {
        "evaluations": len(best),
        "percent_above": percent,
        "within_1_percent_after": reached(best, 1.01 * exact),
    }


def additive(seed: int) -> dict[str, Any]:
    problem = problem_of(seed)
    exact = IntegerLinearProgram().solve(problem).loss
    starts = hull_of(problem)
    hull = []
    for draw in range(2):
        solver = Evolutionary(num_trials=2000, seed=draw, is_seeded=False, starts=starts)
        hull.append(distance(trace(solver, problem, sum_of(problem))[0], exact))
    nearest = float(sum_of(problem)(np.array(starts)).min())
    return {
        "problem": seed,
        "hull_percent_above": round(100 * (nearest / exact - 1), 3),
        "hull": hull,
        "random": random_starts(problem, seed),
    }


def random_starts(problem: Problem, seed: int) -> dict[str, Any]:
    exact = IntegerLinearProgram().solve(problem).loss
    solver = Evolutionary(
        num_trials=20000, seed=seed, is_seeded=False, population_size=100, batch_size=50
    )
    best, _ = trace(solver, problem, sum_of(problem))
    early = round(100 * (float(best[NUM_EARLY - 1]) / exact - 1), 3)
    return distance(best, exact) | {f"percent_above_after_{NUM_EARLY}": early}


def bayesian_additive() -> dict[str, Any]:
    problem = problem_of(0)
    exact = IntegerLinearProgram().solve(problem).loss
    found: dict[str, Any] = {}
    for name, starts in (("random", ()), ("hull", hull_of(problem))):
        solver = Bayesian(num_trials=200, is_seeded=False, starts=starts)
        best, overhead_ms = trace(solver, problem, sum_of(problem))
        found[name] = distance(best, exact) | {"overhead_ms": overhead_ms}
    return found


def optuna_nsga2(num_trials: int = NUM_EARLY) -> dict[str, Any]:
    """Optuna's own sampler in memory, a parameter for each layer, from random starts."""
    problem = problem_of(0)
    exact = IntegerLinearProgram().solve(problem).loss
    (budget,) = problem.budgets

    def evaluate(trial: optuna.Trial) -> float:
        drawn = [trial.suggest_categorical(f"g{i}", range(4)) for i in range(NUM_LAYERS)]
        candidate = np.array(drawn, dtype=np.intp)
        trial.set_constraint("bytes", budget.used(candidate) / budget.limit - 1)
        return problem.loss_of(candidate)

    study = optuna.create_study(sampler=optuna.samplers.NSGAIISampler(seed=0))
    start = time.perf_counter()
    study.optimize(evaluate, n_trials=num_trials)
    spent = time.perf_counter() - start
    feasible = [t.value for t in study.trials if max(t.constraints.values()) <= 0]
    losses = [value for value in feasible if value is not None]
    return {
        "evaluations": num_trials,
        "within_budget": len(losses),
        "percent_above": round(100 * (min(losses) / exact - 1), 1) if losses else None,
        "overhead_ms": round(1e3 * spent / num_trials, 2),
    }


def overhead() -> dict[str, Any]:
    problem = problem_of(0)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        storages = {"memory": "", "journal": f"{path}/a.log", "sqlite": f"sqlite:///{path}/a.db"}
        for kind, storage in storages.items():
            for solver in (Evolutionary(num_trials=500), Bayesian(), Surrogate()):
                stored = replace(solver, storage=storage, study=solver.name)
                _, spent = trace(stored, problem, sum_of(problem))
                found.setdefault(solver.name, {})[kind] = spent
    return found


def other(truth: Callable[[Problem, int], Objective], seed: int) -> dict[str, Any]:
    problem = problem_of(seed)
    loss = truth(problem, seed)
    solvers: Sequence[Solver] = (
        Surrogate(num_trials=300),
        Evolutionary(num_trials=3000),
        Bayesian(num_trials=200),
    )
    traces = {solver.name: trace(solver, problem, loss)[0] for solver in solvers}
    long = trace(Evolutionary(num_trials=10000, seed=1), problem, loss)[0]
    least = min(float(best[-1]) for best in (long, *traces.values()))
    exact = IntegerLinearProgram().solve(problem).columns
    assert exact is not None
    answer = float(loss(exact[None])[0])
    found: dict[str, Any] = {
        "problem": seed,
        "additive_answer_percent_above": round(100 * (answer / least - 1), 2),
    }
    for name, best in traces.items():
        found[name] = {f"within_{w:.0%}_after": reached(best, (1 + w) * least) for w in WITHIN}
        found[name]["evaluations"] = len(best)
        found[name]["percent_above"] = round(100 * (float(best[-1]) / least - 1), 2)
    return found


if __name__ == "__main__":
    main()
