"""All of a model, its data and the process that nobody may change, bit for bit."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.Size)


@dataclass
class Snapshot:
    """Path to what stands there: numbers as bytes, other objects by identity."""

    found: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, *data: Any) -> Self:
        """Every module's attributes, whatever they are, the data, and the random states."""
        found: dict[str, Any] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            found[f"{name}:class"] = type(module)
            found[f"{name}:names"] = tuple(vars(module))
            # Hooks, modes, parameters, buffers and the user's own attributes are all there.
            for key, value in vars(module).items():
                found |= dict(_walk(f"{name}:{key}", value))
        found |= dict(_walk("data", data))
        found |= {
            "grad mode": torch.is_grad_enabled(),
            "dtype": torch.get_default_dtype(),
            "torch": torch.get_rng_state().numpy().tobytes(),
            "numpy": repr(np.random.get_state()),
            "python": random.getstate(),
        }
        return cls(found)

    def changes(self, other: Self) -> list[str]:
        """Paths at which another one differs."""
        paths = dict.fromkeys((*self.found, *other.found))
        missing = object()
        return [
            path
            for path in paths
            if self.found.get(path, missing) != other.found.get(path, missing)
        ]


def _walk(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        yield path, _tensor(value)
        if value.is_leaf and value.grad is not None:
            yield f"{path}.grad", _tensor(value.grad)
    elif isinstance(value, dict):
        yield f"{path}.keys", tuple(map(str, value))
        for key, item in value.items():
            yield from _walk(f"{path}.{key}", item)
    elif isinstance(value, list | tuple):
        yield f"{path}.length", len(value)
        for index, item in enumerate(value):
            yield from _walk(f"{path}.{index}", item)
    else:
        yield path, value if isinstance(value, _PLAIN) else id(value)


def _tensor(value: Tensor) -> tuple[Any, ...]:
    numbers = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    place = (id(value), value.data_ptr(), value.stride(), value.requires_grad)
    return (*place, value.dtype, tuple(value.shape), numbers)
