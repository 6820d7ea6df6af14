"""What second moments of long rows take: whole up to 16,384 inputs, above in blocks.

    python benchmarks/long_rows.py > benchmarks/long_rows.json

For layers of so many inputs and 64 outputs, each in a process of its own with one thread: MiB
beyond the most that the process held before, and processor seconds, of collecting the moment of 256
examples (one forward and one backward pass) and of rounding to 2, 4 and 8 bits by GPTQ after that.
``block`` is the size of a block, ``moment_mib`` what the moment itself takes. The last rows are a
layer of 8,192 inputs as if it were beyond the size: what blocks save, and what they lose.

``error``: the squared error of the layer's outputs at 4 bits on other 256 examples, in units of
rounding to nearest's, which is what blocks lose. Inputs share 64 directions.
"""

import json
import multiprocessing
import resource
import sys
import time

import torch
from torch import Tensor, nn

from mpq import Calibration
from mpq.network.network import Network
from mpq.quantization.numerics import OWN
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import weight_grid
from mpq.rounding import ROUNDINGS
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes.second_moments import DENSE_INPUTS, second_moments

CASES = (
    (4096, DENSE_INPUTS),
    (8192, DENSE_INPUTS),
    (28672, DENSE_INPUTS),
    (65536, DENSE_INPUTS),
    (8192, 4096),
    (8192, 2048),
)
OUTPUTS = 64
EXAMPLES = 256
SPELLINGS = ("w2", "w4", "w8")


def main() -> None:
    rows = []
    for case in CASES:
        print(*case, file=sys.stderr)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(cost, case))
    command = " ".join(["python", *sys.argv])
    print(json.dumps({"command": command, "torch": torch.__version__, "rows": rows}, indent=1))


def cost(inputs: int, dense_inputs: int) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Linear(inputs, OUTPUTS, bias=False)
    directions = torch.randn(64, inputs) * torch.arange(1, 65)[:, None] ** -0.5
    seen, unseen = (examples(directions) for _ in range(2))
    data = Calibration(list(seen.split(64)))
    network = Network.of(model.eval(), data)
    precisions = tuple(map(Precision.parse, SPELLINGS))
    on = Estimation(network, data, Quantizer(ActivationRanges({})), precisions)
    before, start = peak_mib(), time.process_time()
    moment = second_moments(on, dense_inputs=dense_inputs).values[""]
    collected, between = peak_mib(), time.process_time()
    weight = model.weight.detach()
    formats = [p.weight for p in precisions]
    # By extremes: where scales start is not what is clocked.
    grids = [weight_grid(weight, f, RANGE_METHODS.build("minmax"), OWN) for f in formats]
    with torch.no_grad():
        gptq, nearest = (
            ROUNDINGS.build(name).codes(weight, moment, formats, grids, OWN)[1].numbers()
            for name in ("gptq", "nearest")
        )
    return {
        "inputs": inputs,
        "block": moment.shape[-1],
        "moment_mib": moment.numel() * 4 // 2**20,
        "collecting_mib": round(collected - before),
        "collecting_cpu_seconds": round(between - start, 1),
        "both_mib": round(peak_mib() - before),
        "rounding_cpu_seconds": round(time.process_time() - between, 1),
        "error": round(error(unseen, gptq - weight) / error(unseen, nearest - weight), 4),
    }


def examples(directions: Tensor) -> Tensor:
    """``[N, K]``: shares of the directions, and noise."""
    shares = torch.randn(EXAMPLES, len(directions))
    return shares @ directions + 0.5 * torch.randn(EXAMPLES, directions.shape[1])


def error(x: Tensor, change: Tensor) -> float:
    return float((x @ change.t()).square().sum())


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
