"""A network of MLX module by module: what each of them reads and gives while it runs."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mpq.backends.layerwise import INPUT, OUTPUT, call_name


def traced(module: Any, head: str, run: Callable[[], object]) -> dict[str, Tensor]:
    """What every call of every module read and gave, in the order in which calls end.

    A module is called by its class, so that each has a class of its own for as long as it runs.

    Args:
        module: A network of mlx-lm, left as found.
        head: What an embedding is called where it is the last layer, too; empty: it is not.
        run: Runs it once.

    Returns:
        As ``mpq.backends.layerwise.traced``.
    """
    found: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()

    def keep(name: str, read: Tensor | None, made: Any) -> None:
        output = _first_array(made if isinstance(made, tuple | list) else (made,))
        counts[name] += 1
        if output is None:
            return
        call = call_name(name, counts[name])
        if read is not None:
            found[INPUT + call] = read
        found[OUTPUT + call] = output

    parts = [(name, part, type(part)) for name, part in module.named_modules() if name]
    try:
        for name, part, kind in parts:
            part.__class__ = _watched(kind, name, head, keep)
        run()
    finally:
        for _, part, kind in parts:
            part.__class__ = kind
    return found


def _watched(
    kind: Any, name: str, head: str, keep: Callable[[str, Tensor | None, Any], None]
) -> type:
    """A class whose calls are looked at, and otherwise the same."""

    def called(part: Any, *args: Any, **kwargs: Any) -> Any:
        read = _first_array((*args, *kwargs.values()))
        made = kind.__call__(part, *args, **kwargs)
        keep(name, read, made)
        return made

    def as_linear(part: Any, x: Any) -> Any:
        read, made = _first_array((x,)), kind.as_linear(part, x)
        keep(head, read, made)
        return made

    own: dict[str, Any] = {"__call__": called}
    if head and hasattr(kind, "as_linear"):
        own["as_linear"] = as_linear
    return type(kind.__name__, (kind,), own)


def _first_array(values: Any) -> Tensor | None:
    """Copied at once, as MLX may write into it afterwards."""
    import mlx.core as mx
    import numpy as np

    for value in values:
        if isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating):
            return torch.from_numpy(np.array(value.astype(mx.float32)))
    return None
