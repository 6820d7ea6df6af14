"""Whether a network's forward writes its own parameters, found before anything is written."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpq.errors import ModelError
from mpq.network.wrappers import plain_modules


@contextmanager
def parameters_kept(model: nn.Module) -> Iterator[None]:
    """Within this block a write to a parameter's memory raises, and does not happen.

    Args:
        model: The user's, whose memory our copy shares.

    Raises:
        ModelError: Names the parameter.
    """
    names = {
        int(parameter.untyped_storage()._cdata): f"{path}.{name}" if path else name
        for path, module in plain_modules(model)
        for name, parameter in module._parameters.items()
        if type(parameter) is nn.Parameter
    }
    with _Refusing(names):
        yield


@final
class _Refusing(TorchDispatchMode):
    """Below autograd, where also ``parameter.data`` and ``detach()`` are the same memory."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # As in `dataflow`: otherwise torch imports its compiler, which takes seconds.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the operator, unless it writes one of the parameters."""
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            self._check(func, args, kwargs)
        return func(*args, **kwargs)

    def _check(self, func: Any, args: Any, kwargs: Any) -> None:
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            for leaf in tree_leaves(value):
                name = _stored_in(leaf, self.names)
                if name is not None:
                    raise ModelError(
                        f"the network writes its parameter {name!r} in every forward pass "
                        f"({func}), so that its weights would not stay as they are; do it once "
                        "before the search, or on a copy within forward"
                    )


def _stored_in(value: Any, names: dict[int, str]) -> str | None:
    if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided:
        return None
    return names.get(int(value.untyped_storage()._cdata))
