"""Results that nobody searched for: any number of layers, called as one likes, in milliseconds."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

import mpq
from mpq.network.layer import Layer
from mpq.network.reach import Reach
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.problem.metadata import Metadata
from mpq.problem.problem import Problem
from mpq.quantization.range_method import ActivationRange
from mpq.report.frontier import Frontier
from mpq.report.measurement import ComparisonRow, Measurement
from mpq.solvers import Lagrangian
from mpq.workflows.provenance import Provenance
from mpq.workflows.result import SearchResult

CANDIDATES = tuple(map(mpq.Precision.parse, ("w2a8", "w3a8", "w4a8", "w6a8", "w8a8")))
HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror=\"window.hacked = 1\">",
    "quotes ' \" ` and {{ braces }} ${dollar}",
    "😀.emoji.🚀",
    "x" * 300,
    "line\u2028separator\u2029and\nbreak\x1b]0;owned\x07",
    "&lt;already&amp;escaped&gt;",
    "\u202eright.to.left",
)  # fmt: skip
"""Names of modules that an adversary chose."""


def blocks(num_layers: int) -> tuple[str, ...]:
    """Names as those of a transformer: four layers in each of its blocks."""
    parts = ("attention.query", "attention.out", "mlp.up", "mlp.down")
    return tuple(f"model.layers.{k // 4}.{parts[k % 4]}" for k in range(num_layers))


def made_up(
    names: Sequence[str], seed: int = 0, interact: bool = False, score: str = ""
) -> SearchResult:
    """A result of these layers, solved for half of the bytes of ``w8a8``.

    The first two layers are tied, and the last one is fixed. A score is 50 less what is lost.
    """
    rng, count = np.random.default_rng(seed), len(names)
    names, bits = tuple(names), np.array([2.0, 3.0, 4.0, 6.0, 8.0])
    sizes = rng.integers(2, 40, count) * 64
    loss = np.exp(rng.normal(-6, 1.5, count))[:, None] * 4.0 ** (2 - bits)
    tables = (
        CostTable("weight_bytes", "bytes", names, CANDIDATES, sizes[:, None] * bits / 8, 512.0),
        CostTable("latency", "seconds", names, CANDIDATES, sizes[:, None] * (bits + 8) * 1e-9),
    )
    budget = Budget.of(tables[0], float(tables[0].values[:, 4].sum() / 2))
    tie = (names[:2],) if count > 2 else ()
    constraints = Constraints((budget,), tie, {names[-1]: CANDIDATES[4]} if count > 3 else {})
    factor = rng.normal(size=(16, count, 5)) * np.sqrt(loss) if interact else None
    interactions = None if factor is None else Interactions(factor, 0.5)
    problem = Problem(CostTable("sketch", "nats", names, CANDIDATES, loss), constraints)
    solution = Lagrangian().solve(problem)
    problem = replace(problem, interactions=interactions)
    columns = solution.columns
    assert columns is not None
    solution = replace(solution, loss=problem.loss_of(columns), bound=None, seconds=0.25)
    layers = tuple(
        Layer(n, "linear", (64, s // 64), 64, (s // 64,), (64,), s // 64, 64, int(s))
        for n, s in zip(names, sizes.tolist(), strict=True)
    )
    chosen = problem.precisions_of(columns)
    assigned = tuple(
        AssignedLayer(x.name, x.kind, x.weight_shape, chosen[x.name], ActivationRange(-1.0, 2.5))
        for x in layers
    )
    rows = [("original", 0.0, 0.0, 32.0), ("result", solution.loss, 1.4 * solution.loss, 4.0)]
    for column, precision in enumerate(CANDIDATES):
        predicted = float(problem.loss_of(np.full(count, column)))
        rows.append((str(precision), predicted, 1.5 * predicted, bits[column]))
    comparisons = tuple(
        ComparisonRow(
            label, predicted,
            Measurement(
                measured, 0.9, 0.3, 500, standard_error=measured / 10,
                score=50 - measured if score else None,
            ),
            {"weight_bytes": float(sizes.sum() * each / 8 + 512), "latency_seconds": 1e-3},
        )
        for label, predicted, measured, each in rows
    )  # fmt: skip
    metadata = Metadata(
        metric="kl", num_held_out=500, loss_unit="nats", score=score or None,
        measured_score=comparisons[1].measured.score,
    )  # fmt: skip
    return SearchResult(
        problem,
        solution,
        Assignment(assigned, tie, metadata=metadata),
        layers,
        tables,
        (),
        comparisons,
        Provenance(
            "sketch",
            "lagrangian",
            seed,
            None,
            rounding="nearest",
            reach=Reach(num_examples=512),
            higher_score_is_better=bool(score) or None,
        ),
        ranges={name: {"a8": ActivationRange(-1.0, 2.5)} for name in names},
    )


def curve(result: SearchResult, num_points: int = 12) -> Frontier:
    """Its frontier over bytes, additive and so quick."""
    plain = replace(result, problem=result.problem.additive())
    return plain.frontier("weight_bytes", num_points)
