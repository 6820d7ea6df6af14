"""Estimates that are kept on disk: another limit, solver or device takes none of their passes."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from mpq._support.cache import Cache
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.sensitivity import Estimation, Sensitivity, SensitivityEstimator, SpotCheck
from mpq.sensitivity.passes.checkpoint import Checkpoint
from mpq.workflows.cache_keys import key_of, network_parts


def kept_estimate(
    on: Estimation,
    estimator: SensitivityEstimator,
    seed: int,
    make: Callable[[Estimation], Sensitivity],
    cache: Cache | None,
) -> Sensitivity:
    """What an estimator found before of the same network, or finds now.

    An estimator that is not mpq's own is asked every time: what it depends on besides is not known.

    Args:
        on: What is asked of it.
        estimator: Whose answer it is.
        seed: Which cells are measured as a check.
        make: Asks it, and checks the answer. The sketch goes on where a run was killed.
        cache: Where answers are; ``None``: nowhere.

    Raises:
        OutputError: If the cache cannot be read or written.
    """
    if cache is None or not type(estimator).__module__.startswith("mpq."):
        return make(on)
    parts = network_parts(on.network, on.data, on.quantizer, on.candidates)
    key = key_of({**parts, "by": repr(estimator), "seed": str(seed)})
    name, checkpoint = f"{key}.estimate", Checkpoint(cache, f"{key}.partial")
    content = cache.read(name)
    if content is not None:
        return _from_dict(json.loads(content))
    found = make(replace(on, checkpoint=checkpoint))
    cache.write(name, json.dumps(_to_dict(found)).encode())
    checkpoint.remove()
    return found


def _to_dict(found: Sensitivity) -> dict[str, Any]:
    kept = found.interactions, found.standard_error, found.by_channels
    interactions, error, other = (None if part is None else part.to_dict() for part in kept)
    return {
        "table": found.table.to_dict(),
        "interactions": interactions,
        "standard_error": error,
        "check": None if found.check is None else asdict(found.check),
        "by_channels": other,
    }


def _from_dict(data: dict[str, Any]) -> Sensitivity:
    interactions, error, check = data["interactions"], data["standard_error"], data["check"]
    other = data["by_channels"]
    return Sensitivity(
        CostTable.from_dict(data["table"]),
        None if interactions is None else Interactions.from_dict(interactions),
        None if error is None else CostTable.from_dict(error),
        None if check is None else SpotCheck.from_dict(check),
        None if other is None else CostTable.from_dict(other),
    )
