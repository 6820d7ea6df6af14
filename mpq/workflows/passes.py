"""Passes over examples that are watched batch by batch."""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import nn

from mpq._support.events import unheard
from mpq._support.progress import track
from mpq.callbacks.plans import is_plan_wanted, tell_plan
from mpq.network.batch import Batch
from mpq.network.examples import Calibration
from mpq.workflows.clock import clocked


def told_of(data: Calibration) -> Calibration:
    """The same examples; whoever listens is told of every batch."""
    # Their number is known from the second pass on.
    return Calibration(partial(_told, data))


def _told(data: Calibration) -> Iterator[Batch]:
    return track(data, "batches", data.num_batches)


def tell_passes(
    passes: Mapping[str, nn.Module], first: Batch, num_examples: int, device: torch.device
) -> None:
    """Tells ``Planned`` of a pass of each module over the examples, by its first batch.

    Args:
        passes: Phase to the module.
        first: Batch, on the modules' device.
        num_examples: In all batches.
        device: The modules'.
    """
    if not is_plan_wanted():
        return
    phases = {}
    with torch.no_grad(), unheard():
        for name, module in passes.items():
            run = partial(module, *first.args, **first.kwargs)
            phases[name] = clocked(run, device)[1] * num_examples / first.size
    tell_plan(phases)
