"""What least-squares ranges found coarse to fine lose and save beside forty equal steps.

    python benchmarks/range_search.py > benchmarks/range_search.json

Every weight of the published networks with 1,024 numbers or more, and 256 x 512 numbers of six
distributions. For each format: the mean and the largest, over all of them, of the squared error in
units of what ``mse:num_shrinks=40,num_halvings=0`` leaves; and what both take per weight on a
2048 x 2048 layer (process time on one thread, the least of three). Needs the published networks:
set MPQ_DATA, or have them in ../shared/data.
"""

import json
import sys
import time
from collections.abc import Iterator

import torch
from estimators import NETWORKS, ROOT
from torch import Tensor

from mpq.cli.loading import load_model, load_object
from mpq.network.modules import weight_of
from mpq.network.tracing import kind_of
from mpq.network.weight_layout import layout_of
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import RangeMethod
from mpq.quantization.ranges import LeastSquares
from mpq.quantization.rounding import quantize_rows, weight_grid
from mpq.quantization.tensor_format import TensorFormat

COARSE, FORTY = LeastSquares(), LeastSquares(40, num_halvings=0)
SPELLINGS = (
    *("w2", "w3", "w4", "w5", "w6", "w7", "w8", "w4t", "w8t"),
    *("w2g128", "w3g64", "w4g32", "w4g128", "w5g128", "w6g128", "w8g128"),
    *("w2z", "w4z", "w4zg64", "w8z", "w4zf", "w4zfg64"),
    *("wfp8", "wfp4_e2m1", "wnf3", "wnf4", "wnvfp4"),
)


def main() -> None:
    torch.set_num_threads(1)
    weights = [*published(), *drawn()]
    rows = {}
    for spelling in SPELLINGS:
        print(spelling, file=sys.stderr)
        wanted = Precision.parse(spelling).weight
        ratios = [error(x, wanted, COARSE) / error(x, wanted, FORTY) for x in weights]
        rows[spelling] = {
            "mean_squared_error": round(sum(ratios) / len(ratios), 4),
            "largest_squared_error": round(max(ratios), 4),
            "ns_per_weight": nanoseconds(wanted, COARSE),
            "ns_per_weight_of_forty": nanoseconds(wanted, FORTY),
        }
    about = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**about, "weights": len(weights), "rows": rows}, indent=1))


def published() -> Iterator[Tensor]:
    """Rows of the weights of trained networks."""
    for example, weights in NETWORKS.values():
        spec = ROOT / "examples" / f"{example}.py"
        model = load_model(f"{spec}:make_net", load_object(f"{spec}:DATA") / weights)
        for module in model.modules():
            if kind_of(module) is not None and weight_of(module).numel() >= 1024:
                yield layout_of(module).to_rows(weight_of(module).detach())


def drawn() -> Iterator[Tensor]:
    torch.manual_seed(0)
    normal, uniform = torch.randn(256, 512), torch.rand(256, 512) - 0.5
    yield normal
    yield uniform
    yield -uniform.sign() * torch.log1p(-2 * uniform.abs())  # Laplace
    yield torch.where(torch.rand(256, 512) < 0.002, 20 * normal, normal)  # with outliers
    yield normal**3
    yield normal + 1.5


def error(rows: Tensor, wanted: TensorFormat, method: RangeMethod) -> float:
    rounded = quantize_rows(rows, wanted, weight_grid(rows, wanted, method))
    return float((rounded.double() - rows.double()).square().sum())


def nanoseconds(wanted: TensorFormat, method: RangeMethod) -> float:
    """Per weight, of looking for the ranges alone."""
    torch.manual_seed(0)
    rows, times = torch.randn(2048, 2048), []
    for _ in range(3):
        start = time.process_time()
        weight_grid(rows, wanted, method)
        times.append(time.process_time() - start)
    return round(1e9 * min(times) / rows.numel(), 1)


if __name__ == "__main__":
    main()
