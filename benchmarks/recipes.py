"""Every recipe and our default at the same bytes: what the answers lose, and what searching takes.

    python benchmarks/recipes.py resnet20 > benchmarks/recipes/resnet20.json
    python benchmarks/recipes.py llama --recipes default,hawq-v2 --bits 4
    python benchmarks/recipes.py --join benchmarks/recipes/*.json

Networks, calibration and fresh examples are those of ``rounding_search.py`` (one seed). The limit
is the weights' bytes of uniform 3, 4 and 5 bits. Recipes that leave inputs in 16 bits have their
own candidates; the others are given weights of 2 to 8 bits and inputs that are not rounded, as the
default has, which their rows name (``overrides``). ``default+nearest`` is the default whose weights
are rounded to nearest, as most recipes round; ``uniform`` the uniform precision, rounded so;
``default+groups`` the default among the formats that ``evopress`` has, where 128 weights share a
scale, and not a whole output channel.
``hawq-v3+free-ends`` is the recipe with its first and last layer chosen as all others are.
EfficientNet-Lite0's calibration images have no
labels: those are what the network says of them. ``forward_passes`` counts examples that came to
the last layer during the search, measured on by the search itself, per calibration example; a
search for the first number of bits estimates, later ones find what it left (``--cache`` of a
search), so that seconds are of the first. Recipes that measure whole networks may be given fewer of
them (``--trials``), which their rows name, too. ``means`` has what each recipe loses in units of
the default, as geometric means over bits, and over all networks.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from estimators import NETWORKS
from rounding_search import BUDGET_BITS, CANDIDATES, Batches, network, parts
from torch import nn

import mpq
from mpq.errors import MpqError
from mpq.network.examples import Calibration
from mpq.quantization.precision import Precision
from mpq.recipes import RECIPES
from mpq.report.recipes import DEFAULT
from mpq.solvers import SOLVERS
from mpq.workflows.defaults import SOLVER
from mpq.workflows.evaluate import Reference

ALL: Final = (*NETWORKS, "efficientnet_lite0")
NEAREST: Final = f"{DEFAULT}+nearest"
UNIFORM: Final = "uniform"
GROUPS: Final = f"{DEFAULT}+groups"
FREE: Final = "+free-ends"
"""Behind a recipe's name: the first and the last layer are chosen as all others are."""
FREE_ENDS: Final = tuple(f"{name}{FREE}" for name, each in RECIPES.items() if each.ends)
MARK: Final = "_is_counted"
FLOAT_BITS: Final = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(ALL))
    parser.add_argument("--bits", default=",".join(map(str, BUDGET_BITS)))
    parser.add_argument(
        "--recipes", default=",".join([DEFAULT, NEAREST, UNIFORM, GROUPS, *RECIPES, *FREE_ENDS])
    )
    parser.add_argument("--seed", type=int, default=0)
    told = (
        "networks that a recipe measures whole at most, where it measures them; its own otherwise"
    )
    parser.add_argument("--trials", type=int, help=told)
    parser.add_argument("--join", nargs="+", type=Path, help="files of runs, printed as one")
    given = parser.parse_args()
    if given.join:
        runs = [json.loads(file.read_text()) for file in given.join]
        rows = [row for run in runs for row in run["rows"]]
        told = {"commands": [run["command"] for run in runs], "torch": runs[0]["torch"]}
        print(json.dumps({**told, "rows": rows, "means": means(rows)}, indent=1))
        return
    torch.set_num_threads(1)
    bits, names = list(map(int, given.bits.split(","))), given.recipes.split(",")
    runs = (_searches(x, bits, names, given.seed, given.trials) for x in given.networks)
    rows = [row for each in runs for row in each]
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows, "means": means(rows)}, indent=1))


def _searches(
    name: str, bits: list[int], recipes: list[str], seed: int, trials: int | None
) -> Iterator[Any]:
    model, (calibration, fresh) = network(name, seed)
    if name not in NETWORKS:
        with torch.no_grad():
            calibration = [(x, model(x).argmax(dim=1)) for x, _ in calibration]
    reference = Reference(model, Calibration.of(fresh))
    for recipe in recipes:
        with TemporaryDirectory() as folder:
            for budget in bits:
                row = {"network": name, "bits": budget, "recipe": recipe, "seed": seed}
                row |= _search(model, calibration, reference, row, Path(folder), trials)
                print(*row.values(), file=sys.stderr, flush=True)
                yield row


def _search(
    model: nn.Module,
    calibration: Batches,
    reference: Reference,
    row: dict[str, Any],
    cache: Path,
    trials: int | None,
) -> dict[str, Any]:
    """What one search found, or why it found nothing."""
    seen, held_out = parts(calibration)
    name, precision = row["recipe"].removesuffix(FREE), f"w{row['bits']}"
    task = mpq.Task(model, seen, held_out, seed=row["seed"], cache=cache)
    if name in (NEAREST, UNIFORM):
        task = replace(task, rounding="nearest")
    if name == GROUPS:
        task = replace(task, candidates=RECIPES["evopress"].candidates)
    elif not _is_of_weights(name):
        task = replace(task, candidates=(precision,) if name == UNIFORM else CANDIDATES)
    start = time.process_time()
    with counting(model) as seen_rows:
        try:
            recipe = name if name in RECIPES else None
            keep = ["ends"] if row["recipe"].endswith(FREE) else []
            limits, solver = [f"weight_bytes=1x:{precision}"], _with_fewer(name, trials)
            result = mpq.search(task, limits, solver=solver, recipe=recipe, keep=keep)
        except MpqError as error:
            return {"error": str(error).splitlines()[0]}
        counted = sum(seen_rows) / sum(len(x) for x, _ in seen)
    seconds = time.process_time() - start
    used = result.provenance.recipe
    return {
        "kl_nats": reference.compare(mpq.quantize(model, result.assignment)).divergence,
        "weight_bytes": result.problem.budgets[0].used(result.columns),
        "processor_seconds": round(seconds, 1),
        "forward_passes": round(counted, 1),
        "overrides": [] if used is None else list(used.overrides),
    }


def _with_fewer(name: str, trials: int | None) -> str:
    """A recipe's solver that measures so many networks at most; else that of the recipe."""
    if trials is None or name not in RECIPES:
        return SOLVER
    solver: Any = SOLVERS.build(RECIPES[name].solver)
    if not solver.is_measuring or solver.num_trials <= trials:
        return SOLVER
    return SOLVERS.spell(replace(solver, num_trials=trials))


def _is_of_weights(name: str) -> bool:
    """Whether a recipe's candidates leave inputs in 16 bits; the default takes what it is given."""
    if name not in RECIPES:
        return False
    candidates = map(Precision.parse, RECIPES[name].candidates)
    return all(x.activation.number.bits >= FLOAT_BITS for x in candidates)


@contextmanager
def counting(model: nn.Module) -> Iterator[list[int]]:
    """Examples that come to the last layer, of the network and of every copy of it."""
    last = [part for part in model.modules() if isinstance(part, nn.Linear | nn.Conv2d)][-1]
    setattr(last, MARK, True)
    found = list[int]()

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if getattr(module, MARK, False) and args:
            found.append(len(args[0]))

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()
        delattr(last, MARK)


def means(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Recipe to what it loses in units of the default: of each network, and of all."""
    base = {(x["network"], x["bits"]): x["kl_nats"] for x in rows if x["recipe"] == DEFAULT}
    found: dict[str, Any] = {}
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        ratios: dict[str, list[float]] = {}
        for row in rows:
            key = row["network"], row["bits"]
            if row["recipe"] == recipe and "kl_nats" in row and key in base:
                ratios.setdefault(row["network"], []).append(row["kl_nats"] / base[key])
        every = [x for own in ratios.values() for x in own]
        own = {name: _geometric(values) for name, values in ratios.items()}
        found[recipe] = {**own, "all": _geometric(every), "num_answers": len(every)}
    return found


def _geometric(values: list[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


if __name__ == "__main__":
    main()
