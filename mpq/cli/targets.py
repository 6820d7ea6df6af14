"""Deployment targets, as the command line shows them."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.table import Table

from mpq.backends import Target
from mpq.backends.onnx.tensorrt import Finding
from mpq.cli.console import literal, new_table


def target_json(target: type[Target]) -> dict[str, Any]:
    """Everything that a target says of itself, JSON-ready."""
    return {
        "name": target.name,
        "summary": target.summary,
        "readers": target.readers,
        "holds": target.holds,
        "candidates": list(target.candidates),
        "numerics": asdict(target.numerics),
        "tolerance_in_standard_deviations": target.tolerance,
        "judged": target.judged,
        "extra": target.extra,
        "missing_packages": missing(target),
        "notes": list(target.notes),
    }


def missing(target: type[Target]) -> list[str]:
    """Packages that its export needs and that are not installed."""
    return [package for package in target.packages if find_spec(package) is None]


def _needs(target: type[Target]) -> str:
    if not target.packages:
        return "no package beside mpq"
    found = missing(target)
    how = f" (missing: {', '.join(found)})" if found else " (installed)"
    return f"pip install 'mpq[{target.extra}]'{how}"


def targets_table(targets: list[type[Target]]) -> Table:
    """A row per target."""
    table = new_table()
    for heading in ("target", "read by", "what it holds", "installed"):
        table.add_column(heading, overflow="fold")
    for target in targets:
        how = f"pip install 'mpq[{target.extra}]'" if missing(target) else "yes"
        how = how if target.packages else "needs no package"
        table.add_row(*map(literal, (target.name, target.readers, target.holds, how)))
    return table


def print_target(target: type[Target], console: Console) -> None:
    """All of one target."""
    numerics = ", ".join(f"{key} {value}" for key, value in asdict(target.numerics).items())
    lines = (
        f"{target.name}: {target.summary}",
        f"read by: {target.readers}",
        f"holds: {target.holds}",
        f"candidates where none are given: {', '.join(target.candidates)}",
        f"numerics of the simulation: {numerics}",
        f"accepted: {target.judged}, within {target.tolerance:g} standard deviations",
        f"needs: {_needs(target)}",
        *target.notes,
    )
    for line in lines:
        console.print(literal(line))


def findings_lines(findings: Sequence[Finding]) -> list[str]:
    """What breaks TensorRT's rules, a line each, for people."""
    if not findings:
        return ["TensorRT: no rule of its documentation is broken; not run here"]
    said = {True: "refused", False: "slow"}
    return [
        *(f"{said[x.is_refused]}: {x.node}: {x.text}" for x in findings),
        "TensorRT: by the rules of its documentation; not run here",
    ]
