"""Codebooks of a 4096 x 4096 layer by weighted k-means: their time, and how far from the optimum.

    python benchmarks/codebooks.py > benchmarks/codebooks.json

Processor seconds of all 4096 rows of Student's t with 4 degrees of freedom, weights of skewed
inputs. The excess is that of the squared error over the optimum's, the largest of 64 rows: rows of
4096 are beyond ``MOST_PLACES``, up to which k-means is exact; there the limit is put beyond them.
"""

import json
import time

import numpy as np

from mpq.quantization import kmeans
from mpq.quantization.kmeans import Array, kmeans_levels

SIZE, SOME = 4096, 64


def main() -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_t(4, (SIZE, SIZE)).astype(np.float32).astype(np.float64)
    weights = np.broadcast_to(generator.random(SIZE) ** 4 + 0.01, rows.shape)
    limit = kmeans.MOST_PLACES
    result: dict[str, object] = {"numpy": np.__version__, "exact_up_to": limit}
    for bits in (2, 3, 4):
        start = time.process_time()
        found = kmeans_levels(rows, weights, 2**bits)
        seconds = time.process_time() - start
        kmeans.MOST_PLACES = SIZE  # type: ignore[misc]
        start = time.process_time()
        best = kmeans_levels(rows[:SOME], weights[:SOME], 2**bits)
        exact_s = (time.process_time() - start) * SIZE / SOME
        kmeans.MOST_PLACES = limit  # type: ignore[misc]
        excess = errors(rows[:SOME], weights, found[:SOME]) / errors(rows[:SOME], weights, best) - 1
        result[f"cb{bits}"] = {
            "processor_seconds": seconds,
            "exact_processor_seconds": exact_s,
            "largest_excess": float(excess.max()),
        }
    print(json.dumps(result, indent=1))


def errors(rows: Array, weights: Array, levels: Array) -> Array:
    """``[R]`` of every number at its nearest level."""
    distance = [
        ((row[:, None] - each) ** 2).min(axis=1) for row, each in zip(rows, levels, strict=True)
    ]
    return np.asarray((weights[: len(rows)] * np.array(distance)).sum(axis=1))


if __name__ == "__main__":
    main()
