"""Rounding weights for the squared error of outputs: what it costs, and what each step is worth.

    python benchmarks/weight_rounding.py steps nearest gptq > benchmarks/weight_rounding.json

and ``coordinate-descent adaround``, which take longer, into ``weight_rounding_slow.json``.

Arguments are ``steps`` and the roundings that are clocked; without any, it is all of them.

``cost``: processor seconds and memory of a 4096 x 4096 layer at six precisions, one thread, each
rounding in a process of its own. Memory is MiB beyond the most that the process held before, when
it had made the layer; the codes of all precisions, which come back, are in it. Where ``rows`` says
less than 4096, only so many were rounded: the factorization is done all the same, the rest grows
with them.

``steps``: the squared error of outputs, summed over rows, in units of rounding to nearest's on the
same grids; 32 x 256 layers of two kinds of correlated inputs, mean of three draws. The steps of
coordinate descent come one after the other from ``seven_scales`` on, each keeping the better per
row.
"""

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from statistics import mean

import torch
from torch import Tensor

from mpq.quantization.codes import Codes
from mpq.quantization.grid import Grid
from mpq.quantization.numerics import OWN
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import weight_grid
from mpq.quantization.tensor_format import TensorFormat
from mpq.rounding import ROUNDINGS
from mpq.rounding.coordinate_descent import FACTORS, refitted, swept, turned
from mpq.rounding.gptq import Sequential
from mpq.rounding.objective import Objective
from mpq.rounding.stack import Stack

SPELLINGS = ("w2", "w3", "w4", "w5", "w6", "w8")
SIZE = 4096
ROWS_OF = {"coordinate-descent": 512, "adaround": 16}
"""Rows of the large layer, where not all are rounded."""
DAMPING = 0.01
SEEDS = (0, 1, 2)


def main() -> None:
    parts = sys.argv[1:] or ["steps", *ROUNDINGS.names()]
    command = " ".join(["python", *sys.argv])
    result: dict[str, object] = {"command": command, "torch": torch.__version__}
    if "steps" in parts:
        result["steps"] = {kind: steps(kind) for kind in LAYERS}
    result["cost"] = {name: apart(name) for name in parts if name != "steps"}
    print(json.dumps(result, indent=1))


def apart(name: str) -> dict[str, float]:
    """The cost of one rounding, in a process that nothing else has used."""
    print(f"{name}: {SIZE} x {SIZE}", file=sys.stderr)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(cost, (name,))


def cost(name: str) -> dict[str, float]:
    torch.set_num_threads(1)
    rows, moment = directed(ROWS_OF.get(name, SIZE), SIZE, seed=0)
    formats = formats_of()
    # By extremes: where scales start is not what is clocked.
    grids = [weight_grid(rows, f, RANGE_METHODS.build("minmax"), OWN) for f in formats]
    before, start = peak_mib(), time.process_time()
    with torch.no_grad():
        ROUNDINGS.build(name).codes(rows, moment[None], formats, grids, OWN)
    seconds = time.process_time() - start
    return {"rows": len(rows), "cpu_seconds": round(seconds, 1), "mib": round(peak_mib() - before)}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def directed(num_rows: int, num_inputs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows ``[O, K]`` and the second moment ``[K, K]`` of inputs of very different sizes.

    Sixteen directions that they share, the strongest first, and noise of each input's own size.
    """
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, num_inputs, generator=random) / num_inputs**0.5
    directions = torch.randn(num_inputs, 16, generator=random)
    directions *= torch.arange(1, 17) ** -0.5
    own = 0.5 * torch.randn(num_inputs, generator=random).exp()
    return rows, directions @ directions.t() + torch.diag(own**2)


def mixed(num_rows: int, num_inputs: int, seed: int) -> tuple[Tensor, Tensor]:
    """The same of inputs of about one size: as many directions as inputs, strengths like 1 / k."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, num_inputs, generator=random) / num_inputs**0.5
    directions = torch.randn(num_inputs, num_inputs, generator=random)
    directions *= torch.arange(1, num_inputs + 1) ** -0.5
    return rows, directions @ directions.t()


LAYERS = {"directed": directed, "mixed": mixed}


def formats_of() -> list[TensorFormat]:
    return [Precision.parse(spelling).weight for spelling in SPELLINGS]


def steps(kind: str) -> dict[str, dict[str, float]]:
    """Step to precision to its error, in units of rounding to nearest's."""
    torch.set_num_threads(1)
    draws = [steps_of(*LAYERS[kind](32, 256, seed)) for seed in SEEDS]
    return {
        step: {s: round(mean(draw[step][i] for draw in draws), 4) for i, s in enumerate(SPELLINGS)}
        for step in draws[0]
    }


def steps_of(rows: Tensor, moment: Tensor) -> dict[str, list[float]]:
    formats = formats_of()
    grids = [weight_grid(rows, f, RANGE_METHODS.build("mse"), OWN) for f in formats]
    starts = [Codes.of(rows, f, grid) for f, grid in zip(formats, grids, strict=True)]
    objective = Objective.of(moment, DAMPING)
    stack = Stack.of(rows, formats, [(s.scale, s.zero_point) for s in starts], OWN)
    unit = errors_of(objective, stack, stack.nearest())
    found = {
        "nearest": (stack, stack.nearest()),
        "gptq_without_order": (stack, Sequential.of(objective, False).codes(stack)),
        "gptq": (stack, Sequential.of(objective).codes(stack)),
        **descent(objective, stack),
    }
    relative = {
        step: sums(errors_of(objective, *pair)) / sums(unit) for step, pair in found.items()
    }
    relative |= {
        f"as_registered:{name}": by_name(name, rows, moment, formats, grids, objective) / sums(unit)
        for name in ROUNDINGS.names()
    }
    return {step: values.tolist() for step, values in relative.items()}


def descent(objective: Objective, stack: Stack) -> dict[str, tuple[Stack, Tensor]]:
    """The steps of coordinate descent, each from where the one before it came to."""
    one = Sequential.of(objective)
    swept_only = swept(objective, stack, one.codes(stack))
    scaled = [stack.with_scale(stack.scale * factor) for factor in FACTORS]
    tried = [(each, one.codes(each)) for each in scaled]
    seven = best_of(objective, tried)
    signed = turned(objective, stack)
    scaled = [stack, *(signed.with_scale(signed.scale * factor) for factor in FACTORS)]
    signs = best_of(objective, [(each, one.codes(each)) for each in scaled])
    all_scales = [
        *scaled,
        *(stack.with_scale(stack.scale * f * s) for f in FACTORS for s in (1, -1)),
    ]
    both = best_of(objective, [(each, one.codes(each)) for each in all_scales])
    refit = better(objective, signs, lambda at: (refitted(objective, *at), at[1]))
    first = better(objective, refit, lambda at: (at[0], swept(objective, *at)))
    second = better(objective, first, lambda at: (at[0], swept(objective, *at)))
    again = better(objective, second, lambda at: (refitted(objective, *at), at[1]))
    return {
        "gptq_then_one_sweep": (stack, swept_only),
        "seven_scales": seven,
        "seven_scales_with_signs": signs,
        "fourteen_scales_of_both_signs": both,
        "with_signs_refit": refit,
        "with_signs_refit_one_sweep": first,
        "with_signs_refit_two_sweeps": second,
        "with_signs_refit_two_sweeps_refit": again,
    }


def better(
    objective: Objective,
    at: tuple[Stack, Tensor],
    step: Callable[[tuple[Stack, Tensor]], tuple[Stack, Tensor]],
) -> tuple[Stack, Tensor]:
    return best_of(objective, [at, step(at)])


def best_of(objective: Objective, tried: list[tuple[Stack, Tensor]]) -> tuple[Stack, Tensor]:
    """The best of several, row by row."""
    errors = torch.stack([errors_of(objective, *pair) for pair in tried])
    index = errors.argmin(dim=0)
    rows = torch.arange(errors.shape[1])
    scale = torch.stack([stack.scale for stack, _ in tried])[index, :, rows].t()
    codes = torch.stack([codes for _, codes in tried])[index, :, rows].t()
    return tried[0][0].with_scale(scale.contiguous()), codes.contiguous()


def by_name(
    name: str,
    rows: Tensor,
    moment: Tensor,
    formats: list[TensorFormat],
    grids: list[Grid],
    objective: Objective,
) -> Tensor:
    with torch.no_grad():
        found = ROUNDINGS.build(name).codes(rows, moment[None], formats, grids, OWN)
    return sums(torch.cat([objective.of_errors((c.numbers() - rows).t()) for c in found]))


def errors_of(objective: Objective, stack: Stack, codes: Tensor) -> Tensor:
    """``[R]``"""
    return objective.of_errors(stack.all_numbers(codes) - stack.target)


def sums(errors: Tensor) -> Tensor:
    """``[B]`` over the rows of each precision."""
    return errors.reshape(len(SPELLINGS), -1).sum(dim=1)


if __name__ == "__main__":
    main()
