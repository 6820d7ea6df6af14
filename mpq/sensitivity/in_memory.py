"""An estimate whose batches are cut where they do not fit into memory."""

from collections.abc import Callable
from dataclasses import replace

from mpq.network.halving import halved
from mpq.sensitivity._base import Sensitivity
from mpq.sensitivity.estimation import Estimation


def in_memory(
    name: str, on: Estimation, estimate: Callable[[Estimation], Sensitivity]
) -> Sensitivity:
    """What an estimator says; see ``halved`` for what becomes of batches that do not fit.

    Args:
        name: The estimator's.
        on: What it is asked.
        estimate: Asks it.

    Raises:
        InputError: If not even a single example fits, or batches cannot be cut.
    """
    uncut = on.network.why_uncut
    # Ranks exchange numbers within an estimate: one that begins anew would wait for the others.
    if on.ranks is not None or on.workers is not None:
        uncut = "they are shared among several processes"
    what = f"the estimate ({name})"
    return halved(what, on.data, lambda data: estimate(replace(on, data=data)), uncut)
