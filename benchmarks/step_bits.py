"""What other bits of activations at other steps of a diffusion could gain, before it is built.

    python benchmarks/step_bits.py > benchmarks/step_bits.json
    python benchmarks/step_bits.py --choosing

The denoiser of ``diffusion.py`` with 256 calibration examples, weights rounded to nearest, ranges
by cluster of steps. Weights take 4 or 8 bits, the same at all steps, inputs 3 to 6 or 8. Three
answers have the same mean bit operations over steps, those of w4a4 and a share more: ``layers``,
inputs with the same bits at all steps, by the sketch's sum over layers (``by_pairs``: with its
interactions, which a search has); ``clusters``, the least sum over layers and clusters
(``SearchResult.step_losses``) with bits of inputs of their own in every cluster, by a mixed integer
program; and ``given weights``, the same beside the weights of ``layers``. ``predicted`` is what the
table says of each, as a share of ``layers``: no other assignment within the limit does better by
this table. ``noise`` is the squared difference from the original's noise on fresh images, as a
ratio to ``layers`` with a 95 % interval by paired bootstrap; every example is run with the formats
of its cluster. With --choosing the images are of the training split. Needs no data.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from diffusion import Fresh, _shown
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array

import mpq
from mpq._support.arrays import Array, Columns
from mpq.demo.denoiser import Denoiser, denoising_batches, trained_denoiser
from mpq.problem.limits import parse_limits
from mpq.quantization.steps import Steps
from mpq.sensitivity.output_sketch import OutputSketch
from mpq.solvers.queries.solve import solve
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.search import estimated
from mpq.workflows.setup import Prepared

WEIGHTS: Final = (4, 8)
INPUTS: Final = (3, 4, 5, 6, 8)
CANDIDATES: Final = tuple(f"w{w}a{a}" for w in WEIGHTS for a in INPUTS)
SHARES: Final = (1.0, 1.25, 1.5, 2.0)
NUM_CALIBRATION: Final = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--clusters", default="4,8")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--choosing", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = trained_denoiser(given.updates, width=16)
    rows = []
    for seed in map(int, given.seeds.split(",")):
        fresh = Fresh.of(model, seed, "train" if given.choosing else "held_out")
        for clusters in map(int, given.clusters.split(",")):
            for row in compared(model, seed, clusters, fresh):
                rows.append({"seed": seed, "clusters": clusters, **row})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    header = {"command": shlex.join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows}, indent=1))


def compared(model: Denoiser, seed: int, clusters: int, fresh: Fresh) -> Iterator[dict[str, Any]]:
    """A row for every limit."""
    task = mpq.Task(
        model, denoising_batches(NUM_CALIBRATION, 10 + seed), denoising_batches(200, 5),
        candidates=CANDIDATES, metric="squared-error", rounding="nearest",
        steps=Steps("timestep", clusters, trial=False),
    )  # fmt: skip
    prepared = Prepared.of(task)
    evaluator = Evaluator(prepared.network, prepared.quantizer, fresh.original)
    found = OutputSketch().estimate(prepared.asked)
    assert found.steps is not None
    losses, examples = found.steps.losses(found.table.values), found.steps.examples
    costs = prepared.pricing.table("bit_operations", prepared.candidates).values
    plan = prepared.step_plan
    assert plan is not None
    of_example = np.searchsorted(plan.record.clusters.borders, fresh.steps, side="right")
    for share in SHARES:
        limit = share * costs[:, CANDIDATES.index("w4a4")].sum()
        choices = {"layers": chosen(losses, costs, examples, limit, same=True)}
        choices["clusters"] = chosen(losses, costs, examples, limit)
        weights = choices["layers"][:, 0] // len(INPUTS)
        choices["given weights"] = chosen(losses, costs, examples, limit, weights=weights)
        choices["by_pairs"] = by_pairs(prepared, limit, clusters)
        rows = {name: by_example(evaluator, x, of_example) for name, x in choices.items()}
        base = sum_of(losses, choices["layers"], examples)
        yield {
            "share": share,
            **{
                name: {
                    "predicted": sum_of(losses, x, examples) / base,
                    "bit_operations": used(costs, x, examples) / limit,
                    "noise": _shown(rows[name], rows["layers"]),
                }
                for name, x in choices.items()
            },
        }


def sum_of(losses: Array, columns: Columns, examples: Array) -> float:
    """Of a choice ``[L, T]``, by the table ``[L, B, T]``."""
    own = np.take_along_axis(losses, columns[:, None], axis=1)[:, 0]
    return float((own * examples).sum())


def used(costs: Array, columns: Columns, examples: Array) -> float:
    """Mean over steps of what a choice ``[L, T]`` takes."""
    return float((np.take_along_axis(costs, columns, axis=1) * examples).sum())


def by_pairs(prepared: Prepared, limit: float, clusters: int) -> Columns:
    """``[L, T]`` of the search's own answer by the sketch, the same at all steps."""
    solver = mpq.SOLVERS.build("auto")
    constraints = prepared.constraints(parse_limits({"bit_operations": limit}))
    problem = estimated(prepared, constraints, OutputSketch(), solver)
    columns = solve(solver, problem).columns
    assert columns is not None
    return np.repeat(columns[:, None], clusters, axis=1)


def by_example(evaluator: Evaluator, columns: Columns, of_example: Columns) -> Array:
    """What every fresh example loses with the formats of its cluster."""
    precisions = [mpq.Precision.parse(text) for text in CANDIDATES]
    names = [layer.name for layer in evaluator.network.layers]
    found = np.zeros(len(of_example))
    for cluster, own in enumerate(columns.T):
        chosen = {name: precisions[c] for name, c in zip(names, own.tolist(), strict=True)}
        here = of_example == cluster
        found[here] = evaluator.measure(chosen).by_example[here]
    return found


def chosen(
    losses: Array,
    costs: Array,
    examples: Array,
    limit: float,
    same: bool = False,
    weights: Columns | None = None,
) -> Columns:
    """``[L, T]`` columns of the least loss, to a proved optimum.

    Args:
        losses: ``[L, B, T]``.
        costs: ``[L, B]``.
        examples: ``[T]`` shares of clusters.
        limit: Of the mean over clusters.
        same: Whether all clusters have the same inputs.
        weights: ``[L]`` the place of each layer's weight in ``WEIGHTS``, where that is given.
    """
    num_layers, num_columns, num_clusters = losses.shape
    count, cells = losses.size, np.arange(losses.size).reshape(losses.shape)
    # One more variable for each layer and weight: the clusters take the same.
    rows, bounds = [], []
    kind = np.arange(num_columns) // len(INPUTS)

    def row(pairs: list[tuple[int, float]], low: float, high: float) -> None:
        rows.append(pairs)
        bounds.append((low, high))

    total = count + num_layers * len(WEIGHTS)
    for layer in range(num_layers):
        for weight in range(len(WEIGHTS)):
            switch = count + layer * len(WEIGHTS) + weight
            for cluster in range(num_clusters):
                own = cells[layer, kind == weight, cluster].tolist()
                row([*((cell, 1.0) for cell in own), (switch, -1.0)], 0, 0)
            if weights is not None:
                row([(switch, 1.0)], float(weights[layer] == weight), 1)
        row([(count + layer * len(WEIGHTS) + w, 1.0) for w in range(len(WEIGHTS))], 1, 1)
        if same:
            for column in range(num_columns):
                for other in cells[layer, column, 1:].tolist():
                    row([(int(cells[layer, column, 0]), 1.0), (other, -1.0)], 0, 0)
    spent = costs[:, :, None] * examples
    row(list(zip(cells.ravel().tolist(), (spent.ravel() / limit).tolist(), strict=True)), 0, 1)
    matrix = lil_array((len(rows), total))
    for place, pairs in enumerate(rows):
        for column, value in pairs:
            matrix[place, column] = value
    low, high = np.array(bounds).T
    values = np.concatenate([(losses * examples).ravel(), np.zeros(total - count)])
    found = milp(
        values / values.max(), constraints=LinearConstraint(matrix.tocsr(), low, high),
        integrality=np.ones(total), bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-6, "time_limit": 60},
    )  # fmt: skip
    assert found.x is not None
    return np.asarray(found.x[:count].reshape(losses.shape).argmax(axis=1))


if __name__ == "__main__":
    main()
