"""How much faster two workers of a Ray cluster measure a sweep than one process of one thread.

    python benchmarks/workers.py > benchmarks/workers.json

Every layer of a convolutional network of random weights at six weight formats, on eight batches of
32 images: once in this process, once by ``--workers ray:2``, in turns. ``speedup`` is the ratio of
the medians of elapsed seconds, cluster started; ``start_seconds`` is what that took. Elapsed time
says nothing on a machine that does other things meanwhile, so that it is refused where the load is
above ``--most-load`` before it begins. ``is_same``: whether both tables are equal to the last bit.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import torch
from torch import nn

from mpq import Calibration, Precision
from mpq._support.ray_workers import task_workers
from mpq._support.workers import Workers
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, Measured

CHOICES = tuple(Precision.parse(f"w{bits}") for bits in (2, 3, 4, 5, 6, 8))
BATCHES, IMAGES = 8, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--width", type=int, default=24, help="channels of a layer")
    parser.add_argument("--depth", type=int, default=8, help="convolutions")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most-load", type=float, default=0.5)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    if load > arguments.most_load:
        sys.exit(f"the load of this machine is {load:.1f}: other programs would be timed as well")
    torch.set_num_threads(1)
    on = question(arguments.width, arguments.depth)
    alone: list[float] = []
    shared: list[float] = []
    tables = []
    with task_workers(Workers("ray", count=arguments.workers)) as tasks:
        start = time.perf_counter()
        assert tasks is not None
        assert tasks.count == arguments.workers
        started = time.perf_counter() - start
        by_workers = replace(on, workers=tasks)
        # Once for nothing: what workers import, and ranges that are kept.
        Measured().estimate(replace(by_workers, data=on.data.until(IMAGES)))
        for _ in range(arguments.repeats):
            for times, asked in ((alone, on), (shared, by_workers)):
                start = time.perf_counter()
                tables.append(Measured().estimate(asked).table.values)
                times.append(time.perf_counter() - start)
    found = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, load {load:.2f} before",
        "torch": torch.__version__,
        "ray": version("ray"),
        "workers": arguments.workers,
        "layers": len(on.names),
        "start_seconds": started,
        "alone_seconds": alone,
        "workers_seconds": shared,
        "speedup": statistics.median(alone) / statistics.median(shared),
        "is_same": all(np.array_equal(table, tables[0]) for table in tables),
    }
    print(json.dumps(found, indent=1))


def question(width: int, depth: int) -> Estimation:
    """Network, images and candidates."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    data = Calibration([torch.randn(IMAGES, 3, 32, 32) for _ in range(BATCHES)])
    network = Network.of(nn.Sequential(*layers).eval(), data)
    quantizer = Quantizer(ActivationRanges({}), shared=network.shared_weights)
    return Estimation(network, data, quantizer, CHOICES)


if __name__ == "__main__":
    main()
