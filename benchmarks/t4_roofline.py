"""The shipped T4 roofline against 74 kernels that were measured on a T4.

    OMP_NUM_THREADS=1 python benchmarks/t4_roofline.py ../shared/data/hwlut

Prints JSON. Measured: HAWQ-V3's TVM tuning logs (Yao et al., 2021, arXiv:2011.10680), int4 and
int8 kernels of ResNet-18 and ResNet-50 at batch size 8, each the fastest that the tuner found.
Predicted: the profile ``nvidia-t4``. A ratio is predicted over measured: below 1, the device was
slower.
"""

import json
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from mpq.hardware_profiles import Entry, Pricing, Workload, load_device
from mpq.hardware_profiles.measured_table.published import hawqv3_kernels
from mpq.network.layer import Layer

FILE = "hawqv3_t4_tvm_kernel_times.csv"


def main() -> None:
    folder = Path(sys.argv[1])
    kernels, num_failed = hawqv3_kernels((folder / FILE).read_text(encoding="utf-8"))
    predicted = [predicted_seconds(kernel) for kernel in kernels]
    result = {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/t4_roofline.py {folder}",
        "device": "nvidia-t4",
        "kernels": len(kernels),
        "kernels_left_out_because_they_failed": num_failed,
        "all": summary(kernels, predicted),
        "by_precision": split(kernels, predicted, [str(k.precision) for k in kernels]),
        "by_family": split(
            kernels, predicted, [f"{k.shape.family}, {k.precision}" for k in kernels]
        ),
        "int4_over_int8": gains(kernels, predicted),
        "every_kernel": [
            {
                "kernel": str(kernel),
                "measured_us": round(kernel.latency_seconds * 1e6, 3),
                "predicted_us": round(seconds * 1e6, 3),
            }
            for kernel, seconds in zip(kernels, predicted, strict=True)
        ],
    }
    print(json.dumps(result, indent=1))


def predicted_seconds(kernel: Entry) -> float:
    shape = kernel.shape
    layer = Layer(
        "kernel",
        shape.kind,
        shape.weight_shape,
        shape.weight_shape[0],
        shape.input_shape,
        shape.output_shape,
        prod(shape.input_shape),
        prod(shape.output_shape),
        shape.macs,
        groups=shape.groups,
    )
    pricing = Pricing((layer,), load_device("nvidia-t4"), Workload(kernel.batch_size))
    return float(pricing.table("latency", [kernel.precision]).values[0, 0])


def split(
    kernels: Sequence[Entry], predicted: Sequence[float], labels: Sequence[str]
) -> dict[str, Any]:
    found = {}
    for label in dict.fromkeys(labels):
        mine = [place for place, other in enumerate(labels) if other == label]
        found[label] = summary([kernels[i] for i in mine], [predicted[i] for i in mine])
    return found


def summary(kernels: Sequence[Entry], predicted: Sequence[float]) -> dict[str, Any]:
    measured = np.array([kernel.latency_seconds for kernel in kernels])
    ratios = np.array(predicted) / measured
    low, median, high = np.quantile(ratios, [0.1, 0.5, 0.9]).tolist()
    has_rank = len(set(measured.tolist())) > 2 and len(set(predicted)) > 1
    rank = float(spearmanr(predicted, measured).statistic) if has_rank else None
    return {
        "kernels": len(kernels),
        "ratio_10th_percentile": round(low, 4),
        "ratio_median": round(median, 4),
        "ratio_90th_percentile": round(high, 4),
        "median_absolute_error": round(float(np.median(np.abs(ratios - 1))), 4),
        "median_absolute_error_after_one_factor": round(
            float(np.median(np.abs(ratios / median - 1))), 4
        ),
        "spearman": None if rank is None else round(rank, 4),
    }


def gains(kernels: Sequence[Entry], predicted: Sequence[float]) -> dict[str, Any]:
    """What 4 bits save where a shape was measured at both: seconds at w4a4 over those at w8a8."""
    times: dict[Any, dict[str, list[tuple[float, float]]]] = {}
    for kernel, seconds in zip(kernels, predicted, strict=True):
        at = times.setdefault(kernel.shape, {}).setdefault(str(kernel.precision), [])
        at.append((kernel.latency_seconds, seconds))
    both = [at for at in times.values() if len(at) == 2]
    means = [(np.mean(at["w4a4"], axis=0) / np.mean(at["w8a8"], axis=0)) for at in both]
    measured, expected = np.array(means).T
    return {
        "shapes": len(both),
        "measured_median": round(float(np.median(measured)), 4),
        "predicted_median": round(float(np.median(expected)), 4),
        "spearman": round(float(spearmanr(expected, measured).statistic), 4),
    }


if __name__ == "__main__":
    main()
