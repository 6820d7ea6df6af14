"""Rounding activations: our elementwise arithmetic against torch's fake-quantize kernel.

    python benchmarks/rounding.py > benchmarks/rounding.json

Median seconds of one rounding of ``[128, 16, 32, 32]`` float32 to 4 bits, affine, one thread; the
results are the same bits.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.grid import Grid

REPEATS = 15


def main() -> None:
    torch.set_num_threads(1)
    x = torch.randn(1, 128 * 16 * 32 * 32, generator=torch.Generator().manual_seed(0))
    scale, zero_point = torch.tensor([0.4]), torch.tensor([7], dtype=torch.int32)
    grid = Grid(NUMBER_FORMATS["int4"], scale, zero_point, symmetric=False)

    def kernel() -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 15)

    ours_s, kernel_s = seconds(lambda: grid.round(x)), seconds(kernel)
    result = {
        "ours_seconds": ours_s,
        "torch_kernel_seconds": kernel_s,
        "ratio": kernel_s / ours_s,
        "is_equal": torch.equal(grid.round(x), kernel()),
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=1))


def seconds(work: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
