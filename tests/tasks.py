"""Tasks from flat options: what a parametrized test varies is one field of a task or its rules."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import nn

import mpq


def task_of(
    model: nn.Module, calibration: Any, options: Mapping[str, Any]
) -> tuple[mpq.Task, dict[str, Any]]:
    """The task of the options that are fields of it, its rules or its workload; and the rest."""
    rest = dict(options)

    def taken(kind: Any) -> dict[str, Any]:
        return {f.name: rest.pop(f.name) for f in fields(kind) if f.name in rest}

    rules, workload = mpq.Rules(**taken(mpq.Rules)), mpq.Workload(**taken(mpq.Workload))
    task = mpq.Task(model, calibration, rules=rules, workload=workload, **taken(mpq.Task))
    return task, rest
