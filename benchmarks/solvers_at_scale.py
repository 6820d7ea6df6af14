"""Solvers at the size of language models: what is proved, and in what time.

    OMP_NUM_THREADS=1 python benchmarks/solvers_at_scale.py
    OMP_NUM_THREADS=1 python benchmarks/solvers_at_scale.py --wall-seconds 150 --cache /tmp/problems

Additive tables like those of ``solvers.py`` for 32 and 126 blocks of seven layers, and for 61
layers of 256 experts of three matrices, with one to three budgets. Interactions: the sketch of
Llamas of 32 blocks with random weights, 226 layers of width 32, from 64 and from 512 sequences; and
made-up factors of 64 rows whose errors are correlated over layers, up to 73,728 precisions. Query,
key and value are tied, and gate and up. Prints JSON: layers, moves (groups of tied layers times
precisions), rows of the factor, budgets, what solved it, processor seconds on one thread, loss,
proved gap, how it ended, and what the additive optimum loses.

Limits on time are wall time, of which a process gets little where many share a machine. ``auto``
keeps its own limits; ``--wall-seconds`` is that of the named solvers.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.sensitivity import ESTIMATORS, Estimation
from mpq.solvers import Auto, BranchAndBound, LocalSearch, OuterApproximation, Solver
from mpq.solvers.additive.default import solve_additive
from mpq.workflows.setup import Prepared
from mpq.workflows.task import Task
from solvers import make  # type: ignore[attr-defined]

BITS = (2, 3, 4, 5, 6, 8)
SHARE = 0.33
"""Of the way from the smallest to the largest size: where the budget of interactions is."""
TIED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
BLOCKS, WIDTH, VOCABULARY = 32, 32, 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--wall-seconds", type=float, default=60.0)
    parser.add_argument("--cache", type=Path, help="folder of the Llamas' problems, made once")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    Auto().solve(made_up(10, 8))  # imports
    found = {
        "command": " ".join(["python", *sys.argv]),
        "versions": {name: version(name) for name in ("numpy", "scipy", "highspy", "torch")},
        "python": platform.python_version(),
        "additive": list(additive()),
        "interactions": list(interacting(asked.wall_seconds, asked.cache)),
    }
    print(json.dumps(found, indent=1))


def additive() -> Iterator[dict[str, Any]]:
    """The sum over layers, of one to three budgets."""
    for case, num_layers, num_precisions, is_tied in (
        ("32 x 7 + 2", 226, 6, False),
        ("126 x 7", 882, 6, False),
        ("61 x 256 x 3 experts, gate and up tied", 61 * 256 * 3, 12, True),
    ):
        for num_budgets in (1, 2, 3):
            problem = make(num_layers, num_precisions, num_budgets, 0)
            ties = first_two_of_three(problem.loss.layers) if is_tied else ()
            problem = Problem(problem.loss, Constraints(problem.budgets, ties))
            yield solved(case, Auto(), problem)


def interacting(seconds: float, cache: Path | None) -> Iterator[dict[str, Any]]:
    """The quadratic loss, by the default solver and by those that it picks from."""
    few = [OuterApproximation(time_limit_s=seconds), BranchAndBound(1e-3, seconds, 20)]
    for num_sequences, length in ((64, 16), (512, 8)):
        case = f"Llama of 32 blocks, {num_sequences} sequences"
        problem = cached(cache, num_sequences, length)
        # With more rows than layers, tangents are no match for the convex relaxation's gap.
        exact = few[num_sequences > 64]
        for solver in (Auto(), LocalSearch(20, time_limit_s=seconds), exact):
            yield solved(case, solver, problem)
    for case, num_layers, is_tied in (
        ("made up, 130 layers", 130, False),
        ("made up, 504 layers", 504, False),
        ("made up, 48 x 128 x 3 experts, gate and up tied", 48 * 128 * 3, True),
    ):
        problem = made_up(num_layers, 64, is_tied)
        named = few[0] if num_layers < 1000 else LocalSearch(20, time_limit_s=seconds)
        for solver in (Auto(), named):
            yield solved(case, solver, problem)


def solved(case: str, solver: Solver, problem: Problem) -> dict[str, Any]:
    """One row."""
    start = time.process_time()
    solution = solver.solve(problem)
    seconds = time.process_time() - start
    row: dict[str, Any] = {
        "case": case,
        "layers": len(problem.loss.layers),
        "moves": int(problem.grouped.allowed.sum()),
        "budgets": len(problem.budgets),
        "asked": solver.name,
        "solver": solution.solver,
        "processor_s": round(seconds, 2),
        "loss": solution.loss,
        "gap": solution.gap,
        "status": solution.status.name.lower(),
    }
    if problem.interactions is not None:
        row["rows"] = len(problem.interactions.factor)
        row["shrinkage"] = problem.interactions.shrinkage
        columns = solve_additive(problem).columns
        assert columns is not None
        row["loss_of_additive_optimum"] = problem.loss_of(columns)
    print(row, file=sys.stderr)
    return row


def cached(folder: Path | None, num_sequences: int, length: int) -> Problem:
    """The Llama's problem from its file, which is made if it is not there."""
    if folder is None:
        return llama(num_sequences, length)
    path = folder / f"llama{BLOCKS}_{num_sequences}_tied.json"
    if not path.exists():
        path.write_text(llama(num_sequences, length).to_json())
    return Problem.from_json(path.read_text())


def llama(num_sequences: int, length: int) -> Problem:
    """The sketch of a Llama with random weights on random tokens, as ``mpq search`` makes it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=4,
        # At the usual 0.02 a layer of this width changes next to nothing.
        initializer_range=0.15,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (num_sequences, length), generator=generator)

    def batches() -> Iterator[dict[str, Any]]:
        yield from ({"input_ids": part} for part in ids.split(8))

    prepared = Prepared.of(Task(model, batches, batches, candidates=[f"w{b}" for b in BITS]))
    estimate = ESTIMATORS.build("sketch", 0).estimate(
        Estimation(prepared.network, prepared.calibration, prepared.quantizer, prepared.candidates)
    )
    size = prepared.pricing.table("weight_bytes", prepared.candidates)
    names = estimate.table.layers
    blocks = sorted({name.rsplit(".", 2)[0] for name in names if ".layers." in name})
    ties = [
        tuple(name for name in names if name.startswith(f"{block}.") and name.endswith(tied))
        for block in blocks
        for tied in TIED
    ]
    held = Constraints((budget(size),), (*prepared.ties, *ties))
    return Problem(estimate.table, held, interactions=estimate.interactions)


def made_up(num_layers: int, num_rows: int, is_tied: bool = False) -> Problem:
    """Errors of a row and of a layer are alike; they halve with every bit."""
    rng = np.random.default_rng(0)
    bits = np.array(BITS, dtype=np.float64)
    factor = rng.standard_normal((num_rows, num_layers, 1))
    factor = factor + 0.3 * rng.standard_normal((num_rows, num_layers, len(bits)))
    factor += 0.5 * rng.standard_normal((num_rows, 1, 1))
    factor *= np.exp(rng.normal(0, 0.8, (num_layers, 1))) * 2.0 ** (2 - bits)
    factor = (0.1 * factor / np.sqrt(num_layers)).astype(np.float32)
    names = tuple(f"layer{i}" for i in range(num_layers))
    precisions = tuple(Precision.parse(f"w{b}") for b in BITS)
    size = np.floor(1000 * rng.lognormal(0, 1, (num_layers, 1))) * bits / 8
    ties = first_two_of_three(names) if is_tied else ()
    loss = 0.5 * np.mean(factor.astype(np.float64) ** 2, axis=0)
    return Problem(
        CostTable("loss", "nats", names, precisions, loss),
        Constraints((budget(CostTable("weight", "bytes", names, precisions, size)),), ties),
        interactions=Interactions(factor, 0.3),
    )


def first_two_of_three(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Gate and up of every expert."""
    return tuple(zip(names[::3], names[1::3], strict=True))


def budget(size: CostTable) -> Budget:
    """At a share of the way from the smallest to the largest."""
    low, high = (float(f(size.values, axis=1).sum()) for f in (np.min, np.max))
    return Budget.of(size, low + SHARE * (high - low))


if __name__ == "__main__":
    main()
