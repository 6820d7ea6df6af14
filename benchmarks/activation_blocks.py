"""Blocks of activations: what widths by block gain over widths by layer at equal bit operations.

    python benchmarks/activation_blocks.py llama > benchmarks/activation_blocks/llama.json
    python benchmarks/activation_blocks.py smollm2 --seeds 1 --block 128 --weight w4g64
    python benchmarks/activation_blocks.py llama --choosing

Every layer's weight in one format (rounded with regard to data), inputs in 4 or 8 bits, found while
running: one scale for every token (``a4d``) or for every token and block of input channels
(``a4dg16``). Limits are bit operations: those of 4 bits, and a tenth, a fifth and a half more,
which is what as many blocks at 8 bits take. Beside uniform widths stand the search by layers and
the same answer by blocks (``--split activations``), with prices of blocks and by the rule of
outliers: of all blocks of the network those at 8 bits whose largest number is largest beside the
root mean square of what the layer reads, as many as the limit holds. Networks, calibration
examples, fresh examples and seeds are those of ``rounding_search.py``; losses are KL divergences
in nats on fresh examples, with --choosing on those by which choices may be made. Needs the
published networks: MPQ_DATA, or ../shared/data; for SmolLM2-135M ``loaders.py``.
"""

import argparse
import json
import shlex
import sys
from dataclasses import dataclass
from functools import partial
from statistics import geometric_mean
from typing import Any, Final

import numpy as np
import torch
from inside import by_layers
from rounding_search import network, parts, ratio

import mpq
from mpq._support.arrays import Array
from mpq.network.modules import share_parameters
from mpq.problem.problem import Problem
from mpq.problem.split import Split
from mpq.quantization.precision import Precision
from mpq.workflows.activation_blocks import solved_in_blocks
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.inside import answer_in_parts
from mpq.workflows.method import Method
from mpq.workflows.setup import Prepared

SHARES: Final = (0.1, 0.2, 0.5)
"""Of bit operations beyond those of 4 bits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network")
    parser.add_argument("--seeds", default="0,1,2", help="with commas")
    parser.add_argument("--weight", default="w4")
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--rounding", default="auto")
    parser.add_argument("--choosing", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in map(int, given.seeds.split(",")):
        case = Case(given.network, seed, given.weight, given.block, given.rounding, given.choosing)
        rows += compared(case)
    header = {"command": shlex.join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows, "means": means(rows)}, indent=1))


@dataclass(frozen=True)
class Case:
    """One network with one seed of its calibration examples."""

    network: str
    seed: int
    weight: str
    block: int
    rounding: str
    choosing: bool

    def spelled(self, bits: int) -> str:
        """A precision whose inputs have blocks."""
        return f"{self.weight}a{bits}dg{self.block}"


def compared(case: Case) -> list[dict[str, Any]]:
    """A row for every limit."""
    model, (calibration, fresh) = network(case.network, case.seed, case.choosing)
    seen, held_out = parts(calibration)
    spelled = [case.spelled(4), case.spelled(8)]
    task = mpq.Task(
        model, seen, held_out, candidates=spelled, rounding=case.rounding, seed=case.seed,
        split=f"activations:{case.block}",
    )  # fmt: skip
    prepared, method = Prepared.of(task), Method.of(ESTIMATOR, SOLVER, case.seed)
    estimate = method.estimator.estimate(prepared.asked)
    original = Reference(share_parameters(model), mpq.Calibration.of(fresh))
    evaluator = Evaluator(prepared.network, prepared.quantizer, original, prepared.own_codes)
    uniform = {
        name: evaluator.measure(dict.fromkeys(prepared.asked.names, Precision.parse(name)))
        for name in (*spelled, *(f"{case.weight}a{bits}d" for bits in (4, 8)))
    }
    split, rows = Split.parse(f"activations:{case.block}"), []
    assert split is not None
    for share in SHARES:
        limit = mpq.Limit.parse(f"bit_operations={1 + share:g}x:{spelled[0]}")
        problem, solution = by_layers(prepared, method, estimate, limit)
        layers = evaluator.measure(solution.precisions(problem)).by_example
        _, _, check = answer_in_parts(prepared, split, problem, solution, estimate)
        found = solved_in_blocks(prepared, split, problem, solution)
        assert found is not None
        asked, inside = found
        precisions = inside.precisions(asked)
        blocks = evaluator.measure(precisions).by_example
        ruled = by_outliers(prepared, asked, case.block)
        wide = [mean_bits(p) for p in precisions.values()]
        rows.append(
            {
                "network": case.network,
                "seed": case.seed,
                "share": share,
                "uniform_kl_nats": {name: x.divergence for name, x in uniform.items()},
                "layers_kl_nats": float(layers.mean()),
                "blocks": ratio(blocks, layers),
                "by_outliers": ratio(evaluator.measure(ruled).by_example, layers),
                "is_taken": check is not None and check.is_replaced,
                "num_mixed": sum(4 < bits < 8 for bits in wide),
                "bit_operations": prepared.pricing.amount("bit_operations", precisions),
                "limit": problem.budgets[0].limit,
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


def by_outliers(prepared: Prepared, asked: Problem, size: int) -> dict[str, Precision]:
    """The answer by the rule of outliers, within the same limit."""
    assert asked.parts is not None
    heights, grouped = outliers(prepared, size), asked.grouped
    flat = [x for name in asked.parts.layers for x in heights.get(name, np.zeros(1)).tolist()]
    columns = np.zeros(len(grouped.first), dtype=np.intp)
    (budget,) = asked.budgets
    for group in np.argsort([-flat[row] for row in grouped.first], kind="stable").tolist():
        wider = columns.copy()
        wider[group] = 1
        is_able = bool(grouped.allowed[group, 1])
        if is_able and budget.used(grouped.expand(wider)) <= budget.limit:
            columns = wider
    return asked.precisions_of(grouped.expand(columns))


def outliers(prepared: Prepared, size: int) -> dict[str, Array]:
    """Layer name to ``[G]`` the largest number of each block, by the root mean square of all."""
    found = dict[str, Array]()
    divided = [x for x in prepared.network.layers if x.kind == "linear"]

    def read(name: str, _: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        x = given[0].flatten(0, -2)
        x = torch.nn.functional.pad(x, (0, -x.shape[-1] % size))
        highest = x.abs().amax(dim=0).view(-1, size).amax(dim=1) / x.square().mean().sqrt()
        found[name] = np.maximum(found.get(name, np.zeros(1)), highest.numpy())

    modules = [(x.name, prepared.network.layer_module(x.name)) for x in divided]
    handles = [m.register_forward_pre_hook(partial(read, name)) for name, m in modules]
    with torch.no_grad():
        for batch in prepared.network.batches(prepared.calibration):
            prepared.network.outputs(batch)
    for handle in handles:
        handle.remove()
    return found


def mean_bits(precision: Precision) -> float:
    """Of what a layer reads."""
    return precision.activation.mean_bits


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means over seeds, by limit."""
    found = []
    for share in dict.fromkeys(row["share"] for row in rows):
        some = [row for row in rows if row["share"] == share]
        losses = {name: [row["uniform_kl_nats"][name] for row in some]
                  for name in some[0]["uniform_kl_nats"]}  # fmt: skip
        losses["layers"] = [row["layers_kl_nats"] for row in some]
        for name in ("blocks", "by_outliers"):
            losses[name] = [row[name]["kl_nats"] for row in some]
        found.append({"share": share} | {name: geometric_mean(x) for name, x in losses.items()})
    return found


if __name__ == "__main__":
    main()
