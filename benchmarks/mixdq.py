"""The published bits of SDXL-Turbo's 794 layers by MixDQ, beside the optimum at the same bits.

    git clone https://github.com/thu-nics/MixDQ
    python benchmarks/mixdq.py MixDQ/mixed_precision_scripts > benchmarks/mixdq.json

MixDQ (Zhao et al. 2024, arXiv:2405.17873) prices the layers that read texts, and those behind them,
by SSIM, all others by SQNR in decibels; each group has a budget of its own. Read here are the
authors' prices of weights, sizes of layers, and the bits that they chose at 5.02 bits in the mean.
For each group: the sum of prices that their bits have and that ours have, both higher for better,
within the weighted sum of bits that theirs take, and in how many layers the two are the same.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

import mpq
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.layer_groups import LayerGroups

SENSITIVITY: Final = "sensitivity_log/sdxl_turbo/weight/{0}/bs32_split_{0}_weight/sensitivity.yaml"
SIZES: Final = "optimize/tensor_ratio/sdxl_turbo/weight_ratio_config.yaml"
PUBLISHED: Final = "mixed_percision_config/sdxl_turbo/final_config/weight/weight_5.02.yaml"
GROUPS: Final = LayerGroups.parse("*ff*|*attn2*=ssim;*=sqnr")
WIDTHS: Final = {"ssim": (2, 4, 8), "sqnr": (4, 8)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="mixed_precision_scripts of the authors' clone")
    folder = parser.parse_args().folder
    sizes, published = read(folder / SIZES), read(folder / PUBLISHED)
    places = GROUPS.of(tuple(published))
    rows = []
    for group, metric in enumerate(GROUPS.metrics):
        names = tuple(n for n, g in zip(published, places, strict=True) if g == group)
        scores = read(folder / SENSITIVITY.format(metric))
        bits = [int(published[name]) for name in names]
        table = {name: dict(zip((2, 4, 8), scores[name], strict=True)) for name in names}
        rows.append(beside(metric, table, {name: sizes[name] for name in names}, bits))
    told = {
        "command": f"python benchmarks/mixdq.py {folder.parent.name}/{folder.name}",
        "mpq": mpq.__version__,
    }
    json.dump({**told, "rows": rows}, sys.stdout, indent=1)


def read(file: Path) -> dict[str, Any]:
    """A YAML file of numbers, or of lists of numbers, by name; as there is no more in these."""
    found: dict[str, Any] = {}
    name = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("- "):
            found[name] = [*(found[name] or []), float(line[2:])]
        elif line.strip():
            name, _, value = line.rpartition(":")
            found[name] = float(value) if value.strip() else None
    return found


def beside(
    metric: str, scores: dict[str, dict[int, float]], sizes: dict[str, float], bits: list[int]
) -> dict[str, Any]:
    """One group: the bits of the authors, and ours."""
    names, widths = tuple(scores), sorted({*WIDTHS[metric], *bits})
    precisions = tuple(mpq.Precision.parse(f"w{b}a8") for b in widths)
    table = np.array([[scores[name][b] for b in widths] for name in names])
    size = np.array([sizes[name] for name in names])
    cost = CostTable("bits", "bits", names, precisions, size[:, None] * np.array(widths))
    loss = CostTable("loss", "relative", names, precisions, table.max() - table)
    theirs = np.array([widths.index(b) for b in bits])
    limit = Budget.of(cost, cost.total(theirs))

    found = mpq.SOLVERS.build("auto").solve(mpq.Problem(loss, Constraints((limit,))))

    assert found.columns is not None
    every = np.arange(len(names))
    return {
        "metric": metric,
        "layers": len(names),
        "published_sum": math.fsum(table[every, theirs]),
        "our_sum": math.fsum(table[every, found.columns]),
        "published_bits": cost.total(theirs),
        "our_bits": cost.total(found.columns),
        "is_proved": found.status.name == "OPTIMAL",
        "layers_alike": int((found.columns == theirs).sum()),
    }


if __name__ == "__main__":
    main()
