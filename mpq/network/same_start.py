"""Every pass of our own copy begins alike: with inputs of its own, and with fixed generators."""

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mpq.network.randomness import random_state_kept

_AS_GIVEN: ContextVar[bool] = ContextVar("_AS_GIVEN", default=False)


def begin_alike(module: nn.Module, seed: int | None = None) -> nn.Module:
    """Makes two passes over one batch equal, as far as that lies outside of the network.

    A pass reads copies of its inputs, so that what ``forward`` writes into them (``x.sub_(mean)``)
    reaches neither the next pass nor the user's data. With a seed the generators of torch, numpy
    and Python start from it in every pass, and go on afterwards where they were before.

    Args:
        module: Our own copy of a model, which gets hooks.
        seed: Where the generators start; ``None``: they are left alone.

    Returns:
        The same module.
    """
    start = _Start(seed)
    # First of all, before hooks of the user's own, which may draw or write as well.
    module.register_forward_pre_hook(start.enter, prepend=True, with_kwargs=True)
    if seed is not None:
        # Also after an error, as the generators are not ours.
        module.register_forward_hook(start.leave, always_call=True)
    return module


class _Start:
    """The hooks of one module."""

    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        # A list, as a network may call itself.
        self._kept: list[AbstractContextManager[None]] = []

    def enter(self, _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if self._seed is not None:
            kept = random_state_kept()
            kept.__enter__()
            self._kept.append(kept)
            _start_from(self._seed)
        return (args, kwargs) if _AS_GIVEN.get() else own_inputs(args, kwargs)

    def leave(self, *_: Any) -> None:
        if self._kept:
            self._kept.pop().__exit__(None, None, None)


def own_inputs(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Copies of a pass's tensors, in containers of their own; one that is given twice stays one."""
    copies: dict[int, Tensor] = {}

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return copies.setdefault(id(value), value.clone())

    return tree_map(own, args), tree_map(own, kwargs)


@contextmanager
def inputs_as_given() -> Iterator[None]:
    """Within this block passes read the very tensors that they are given, which are ours."""
    before = _AS_GIVEN.set(True)
    try:
        yield
    finally:
        _AS_GIVEN.reset(before)


def _start_from(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # numpy takes 32 bits
    random.seed(seed)
