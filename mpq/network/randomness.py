"""The global random states, left as found whatever a user's forward draws."""

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Within this block anything may be drawn; afterwards all generators go on where they were.

    Those of torch (on all devices), numpy and Python; a model's own generator is its own.
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def random_state() -> tuple[Any, ...]:
    """Where the global generators of torch, numpy and Python are: equal where nothing was drawn."""
    of_numpy = pickle.dumps(np.random.get_state())
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    of_torch = tuple(bytes(state.numpy()) for state in (torch.get_rng_state(), *devices))
    return of_torch, of_numpy, random.getstate()
