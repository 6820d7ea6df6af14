"""Values that functions compute from parameters and buffers alone, while a network runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from mpq.network.arguments import tensors_in
from mpq.network.expressions import (
    LONGEST,
    call_of,
    in_memory_order,
    is_known,
    sources_in,
    text_of,
    view_of,
)


@final
@dataclass(frozen=True, eq=False)
class Computed:
    """A value, wherever and how often it was computed.

    Args:
        call: As an expression.
        text: Its spelling.
        sources: Names of what it is computed from.
        stand_in: Of its shape, without numbers: the parameter that it would be.
    """

    call: Any
    text: str
    sources: frozenset[str]
    stand_in: Tensor


@dataclass
class _Value:
    """Where a value lies, whether any function has read it, and what tells that it was written."""

    storage: StorageWeakRef
    computed: Computed
    dtype: torch.dtype
    version: int
    is_used: bool = False


@final
class Constants:
    """What was computed from sources alone so far in a pass.

    Args:
        sources: Name to contiguous parameter or buffer.
    """

    def __init__(self, sources: Mapping[str, Tensor]) -> None:
        self.names = {id(tensor): name for name, tensor in sources.items()}
        """Source to name."""
        self._known: dict[str, Computed] = {}
        self._stand_ins: dict[int, Computed] = {}
        self._values: dict[int, _Value] = {}

    def at(self, key: int, tensor: Tensor) -> Computed | None:
        """The value that a tensor lies in.

        Args:
            key: Of the tensor's storage.
            tensor: Any.
        """
        value = self._values.get(key)
        # By a weak reference: its memory may go, and then lies elsewhere.
        if value is None or value.storage.expired() or tensor.dtype != value.dtype:
            return None
        return value.computed

    def standing(self, parameter: Tensor) -> Computed | None:
        """The value that a stand-in is of."""
        return self._stand_ins.get(id(parameter))

    def may_make(self, func: Any) -> bool:
        """Whether a function could make a value, given the operands for it."""
        return bool(self.names) and is_known(func)

    def make(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, blocks: Any
    ) -> bool:
        """Keeps what a function has returned, if all that it has read are sources and values.

        Args:
            func: A torch function.
            args: Its arguments.
            kwargs: And by name.
            result: What it returned: of a value, memory of its own.
            blocks: ``id`` of each tensor in the arguments to where it lies.
        """
        if not self.may_make(func) or not isinstance(result, Tensor) or result.is_inference():
            return False
        shape = in_memory_order(result)
        if shape is None or result.storage_offset() or not result.numel():
            return False
        if not result.is_floating_point() and result.dtype != torch.bool:
            return False
        if any(id(tensor) not in blocks for tensor in tensors_in((args, kwargs))):
            return False
        call = call_of(func, args, kwargs, lambda tensor: self._operand(blocks[id(tensor)]))
        text = "" if call is None else text_of(call)
        if not text or len(text) > LONGEST:
            return False
        computed = self._computed(call, text, shape)
        storage = StorageWeakRef(result.untyped_storage())
        key = int(result.untyped_storage()._cdata)
        self._values[key] = _Value(storage, computed, result.dtype, result._version)
        return True

    def _operand(self, block: Any) -> Any:
        computed = self.standing(block.parameter)
        base = self.names.get(id(block.parameter)) if computed is None else computed.call
        if base is None:
            return None
        return view_of(base, block.parameter.shape, block.tensor, block.offset)

    def _computed(self, call: Any, text: str, result: Tensor) -> Computed:
        if text not in self._known:
            # On meta, so that no pass keeps all that it has computed.
            stand_in = torch.empty(result.shape, dtype=result.dtype, device="meta")
            found = Computed(call, text, frozenset(sources_in(call)), stand_in)
            self._known[text] = self._stand_ins[id(stand_in)] = found
        return self._known[text]

    def mark_used(self, key: int) -> None:
        """A function has read the value in a storage."""
        if key in self._values:
            self._values[key].is_used = True

    def is_written(self, key: int, tensor: Tensor) -> bool:
        """Whether the value in a storage has been changed since."""
        value = self._values.get(key)
        return value is not None and tensor._version != value.version

    def forget(self) -> list[Computed]:
        """Ends a pass.

        Returns:
            What no function has read: it was given to the caller, or to no torch function.
        """
        left = [value.computed for value in self._values.values() if not value.is_used]
        self._values.clear()
        return left
