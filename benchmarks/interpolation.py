"""How good a measured table is between its shapes: every entry predicted from all the others.

    OMP_NUM_THREADS=1 python benchmarks/interpolation.py ../shared/data/hwlut

Prints JSON: relative errors of ``ShapeRule``, one rule per family, precision and batch size, on the
published tables (HAWQ-V3's T4 kernels, APQ's BitFusion, HAQ's accelerator; the clock of the last
cancels out), over all entries and over those within the range of the others, which is where a table
answers unless it is allowed to extrapolate. Beside it the control, the median of the others.
"""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from mpq.hardware_profiles import Entry, MeasuredTable
from mpq.hardware_profiles.measured_table.interpolation import MIN_ENTRIES, Family
from mpq.hardware_profiles.measured_table.published import import_table

TABLES = {
    "hawqv3-t4": "hawqv3_t4_tvm_kernel_times.csv",
    "apq-bitfusion": "apq_bitfusion_b1.csv",
    "haq-cycles": "haq_mobilenetv2_latency_cycles.csv",
}


def main() -> None:
    folder = Path(sys.argv[1])
    result = {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/interpolation.py {folder}",
        "least_entries_of_a_family": MIN_ENTRIES,
        "tables": {name: table_errors(folder, name) for name in TABLES},
        "scipy": version("scipy"),
        "numpy": version("numpy"),
    }
    print(json.dumps(result, indent=1))


def table_errors(folder: Path, name: str) -> dict[str, Any]:
    clock_hz = 1e6 if name == "haq-cycles" else None
    table = import_table(name, folder / TABLES[name], name, clock_hz)
    return {resource: resource_errors(table, resource) for resource in table.resources}


def resource_errors(table: MeasuredTable, resource: str) -> dict[str, Any]:
    members: dict[tuple[str, str, int], list[Entry]] = {}
    for entry in table.entries:
        key = entry.shape.family, str(entry.precision), entry.batch_size
        members.setdefault(key, []).append(entry)
    large = [Family(entries, resource) for entries in members.values() if is_large(entries)]
    kinds = list(dict.fromkeys(family.entries[0].shape.family for family in large))
    return {
        "entries_in_families_that_are_too_small": len(table.entries)
        - sum(len(family.entries) for family in large),
        "all": summary(large),
        "within_the_range_of_the_others": summary(large, only_inside=True),
        "by_family": {
            kind: summary([f for f in large if f.entries[0].shape.family == kind]) for kind in kinds
        },
    }


def is_large(entries: Sequence[Entry]) -> bool:
    return len(entries) >= MIN_ENTRIES


def is_inside(family: Family) -> npt.NDArray[np.bool_]:
    """Which entries lie within the range of the others."""
    found = []
    for place, sizes in enumerate(family.features):
        others = np.delete(family.features, place, axis=0)
        found.append(bool(((sizes >= others.min(axis=0)) & (sizes <= others.max(axis=0))).all()))
    return np.array(found)


def control_errors(family: Family) -> npt.NDArray[np.float64]:
    """Relative errors of the median of the others."""
    places = np.arange(len(family.entries))
    medians = np.array([np.median(family.values[places != place]) for place in places])
    return medians / family.values - 1


def summary(families: Sequence[Family], only_inside: bool = False) -> dict[str, Any]:
    errors = np.concatenate([family.left_out_errors for family in families])
    control = np.concatenate([control_errors(family) for family in families])
    measured = np.concatenate([family.values for family in families])
    kept = np.concatenate([is_inside(family) for family in families]) | (not only_inside)
    errors, control, measured = errors[kept], control[kept], measured[kept]
    rank = spearmanr((errors + 1) * measured, measured).statistic
    return {
        "entries": len(errors),
        "median_absolute_error": round(float(np.median(np.abs(errors))), 4),
        "90th_percentile": round(float(np.quantile(np.abs(errors), 0.9)), 4),
        "spearman": round(float(rank), 4),
        "median_absolute_error_of_the_control": round(float(np.median(np.abs(control))), 4),
    }


if __name__ == "__main__":
    main()
