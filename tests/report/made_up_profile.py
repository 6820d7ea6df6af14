"""A profile of a network that nobody measured: any layers, called as one likes."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from mpq.hardware_profiles import NetworkProfile
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.quantization.precision import Precision

PRECISIONS = tuple(map(Precision.parse, ("fp32", "w7a8", "w8g32a8d")))
NUM_MIXED = 6


def made_up_profile(names: Sequence[str]) -> NetworkProfile:
    """Two thirds of mixed networks are seen; the second layer is computed wrongly at ``w7a8``."""
    rng, count = np.random.default_rng(0), len(names)
    alone = rng.uniform(1e-5, 1e-3, (count, 1)) * [1.0, 0.4, 0.5]
    alone[1, 1] = np.nan
    pairs = tuple(
        PairwiseCost(one, other, rng.uniform(0, 1e-5, (3, 3))) for one, other in pairwise(names)
    )
    table = CostTable("latency", "seconds", tuple(names), PRECISIONS, alone * 1.1, 2e-4, pairs)
    spelled = [str(precision) for precision in PRECISIONS]
    rows = [
        {"layer": name, "precision": text, **interval(seconds + 1e-6)}
        for name, cells in zip(names, alone.tolist(), strict=True)
        for text, seconds in zip(spelled, cells, strict=True)
        if seconds == seconds
    ]
    mixed = np.where(np.arange(count) == 1, 0, rng.integers(0, 3, (NUM_MIXED, count)))
    columns = [*mixed, np.zeros(count, int), np.full(count, 2)]
    networks = [
        {
            "precisions": {name: spelled[k] for name, k in zip(names, row.tolist(), strict=True)},
            **interval(table.total(row) * 1.02),
            "sum_of_layers_s": table.total(row) * 0.8,
            "unseen_s": table.total(row) * 1.05 if number < 2 else None,
        }
        for number, row in enumerate(columns)
    ]
    neighbours = [
        {
            "layers": [pair.first, pair.second], "precisions": [spelled[p], spelled[q]],
            "excess_s": 2 * float(pair.values[p, q]) + 1e-5, **interval(1e-4),
        }
        for pair in pairs for p in range(3) for q in range(3)
    ]  # fmt: skip
    agreement = {"spearman": 0.9, "num_networks": 2}
    record = {
        "idle": interval(1e-6), "layers": rows, "neighbours": neighbours, "networks": networks,
        "computed_wrongly": [
            {"layer": names[1], "precision": "w7a8", "error_in_standard_deviations": 3.0}
        ],
        "correction": {"overhead_s": 2e-4, "factor_float": 1.1, "factor_pairs": 0.5},
        "agreement": {
            "sum_of_layers": {
                "median_absolute_error": 0.2, "largest_absolute_error": 0.25, **agreement
            },
            "corrected": {
                "median_absolute_error": 0.03, "largest_absolute_error": 0.05, **agreement
            },
        },
    }  # fmt: skip
    return NetworkProfile(
        "mine", "onnxruntime on a processor", "Medians of one machine.",
        tuple(f"{name} linear 4x4" for name in names), 2, table,
        replace(table, values=alone / 50, constant=0.0, pairs=()),
        {"processor": "a processor", "clock": "cpu"}, record,
    )  # fmt: skip


def interval(seconds: float) -> dict[str, float | int]:
    """As a profile records a median."""
    ends = {"low_s": seconds * 0.97, "high_s": seconds * 1.04}
    return {"median_s": seconds, **ends, "wall_s": seconds, "drift": 0.0, "runs": 20}
