"""Watching what torch functions do with parameters, and with copies of their parts."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Final

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from mpq.network.arguments import tensors_in
from mpq.network.constants import Constants
from mpq.network.gathered import Gathered, gathered
from mpq.network.weight_calls import weight_call
from mpq.network.weight_use import Block, WeightCall

_READS: Final = frozenset({"numpy", "tolist", "item", "__setitem__", "__array__"})
"""Functions that use a tensor's numbers though they return no new tensor."""
_BESIDE: Final = frozenset(
    {
        "mul", "multiply", "__rmul__", "div", "divide", "true_divide", "add", "sub", "subtract",
        "rsub", "__radd__", "__rsub__", "cat", "stack", "where", "maximum", "minimum", "lerp",
    }
)  # fmt: skip
"""Functions that would compute a weight if all that they read were parameters or buffers: others
change it for every example, as modulated convolutions do, or are made anew (``torch.eye``)."""


@dataclass
class _Copies:
    """Parts of a parameter in memory of their own, and whether any function has read them."""

    storage: StorageWeakRef
    made: Gathered
    is_used: bool = False


class Recognising(TorchFunctionMode):
    """Finds what torch functions do with some parameters.

    Args:
        parameters: Contiguous parameters.
        sources: Name to each parameter and buffer that weights may be computed from: what functions
            make of these alone is a parameter, too. Those that are none of ``parameters`` are no
            weights by themselves.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        sources: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self._by_storage: dict[int, list[Tensor]] = {}
        self._copies: dict[int, _Copies] = {}
        self.constants = Constants(sources)
        every = {id(p): p for p in parameters}
        self._weights = set(every)
        self._weight_names = {n for n, tensor in sources.items() if id(tensor) in every}
        for parameter in (every | {id(t): t for t in sources.values()}).values():
            self._by_storage.setdefault(_storage(parameter), []).append(parameter)

    is_hiding: ClassVar[bool] = False
    """Whether weights are computed where other modes do not see it."""

    def _hides(self, func: Any) -> bool:
        """Whether other modes are not to see what a function makes of weights alone."""
        return self.is_hiding and self.constants.may_make(func)

    def call(self, call: WeightCall) -> Any:
        """What a recognised function returns."""
        raise NotImplementedError

    def other(self, func: Any, blocks: Sequence[Block]) -> None:
        """Any other function has read these."""
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Other modes count what is read: looking is not reading.
        with torch._C.DisableTorchFunction():
            tensors = tensors_in((args, kwargs))
            blocks = [b for t in tensors if (b := self.located(t)) is not None]
            found = weight_call(func, args, kwargs, self._weight) if blocks else None
            if found is not None:
                beside = [b for b in blocks if b.parameter is not found.parameter]
                # A bias that is a part of the weight's own parameter.
                found = found if len(blocks) - len(beside) == 1 else None
        if found is not None:
            if beside:
                self.other(func, beside)
            self._mark_used(blocks)
            result = self.call(found)
            if result is not None:
                return result
        # What is made of weights alone, as a view, is made outside of a tracer: its memory stays.
        # So is a weight that is computed: the layer's is stored, and no step of the network's.
        is_own = torch.compiler.is_compiling() or self._hides(func)
        is_own = is_own and len(blocks) == len(tensors)
        with _disable_current_modes() if blocks and is_own else nullcontext():
            result = func(*args, **kwargs)
        if not blocks or self._is_copy(func, args, kwargs, blocks, result):
            return result
        if found is None and self._is_made(func, args, kwargs, blocks, result):
            self._mark_used(blocks)
        elif found is None and self._is_read(func, blocks, result):
            self._mark_used(blocks)
            self.other(func, self._numbers(func, args, blocks))
        return result

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        left = [found for found in self._copies.values() if not found.is_used]
        self._copies.clear()
        # Given to nobody that this has seen: to the network's caller, or to no torch function.
        for copies in left if error is None else ():
            block = Block(copies.made.parameter, copies.made.parameter, 0, copies.made)
            self.other(None, [block])
        unread = self.constants.forget()
        for value in unread if error is None else ():
            self.other(None, [Block(value.stand_in, value.stand_in, 0)])

    def _is_copy(
        self, func: Any, args: Any, kwargs: Any, blocks: Sequence[Block], result: Any
    ) -> bool:
        """Whether a function has picked parts of one parameter, which others then read."""
        blocks = [block for block in blocks if self._is_weight(block)]
        if len(blocks) != 1 or blocks[0].gathered or not isinstance(result, Tensor):
            return False
        parameter = blocks[0].parameter
        with torch._C.DisableTorchFunction():
            if _storage(result) == _storage(blocks[0].tensor):
                return False
            made = gathered(func, args, kwargs, parameter, result)
            if made is None:
                return False
            # Of an empty one no number can be read.
            if result.numel():
                storage = StorageWeakRef(result.untyped_storage())
                self._copies[_storage(result)] = _Copies(storage, made)
        return True

    def _is_made(
        self, func: Any, args: Any, kwargs: Any, blocks: Sequence[Block], result: Any
    ) -> bool:
        """Whether a function has computed a value from sources alone, in memory of its own."""
        if not self.constants.may_make(func) or not isinstance(result, Tensor):
            return False
        with torch._C.DisableTorchFunction():
            inside = {_storage(block.tensor) for block in blocks}
            if _storage(result) in inside or any(block.gathered for block in blocks):
                return False
            found = {id(block.tensor): block for block in blocks}
            return self.constants.make(func, args, kwargs, result, found)

    def _mark_used(self, blocks: Sequence[Block]) -> None:
        with torch._C.DisableTorchFunction():
            for block in blocks:
                self.constants.mark_used(_storage(block.tensor))
        for copies in self._copies.values():
            if any(copies.made is block.gathered for block in blocks):
                copies.is_used = True

    def located(self, tensor: Any) -> Block | None:
        """Where a tensor lies, if it lies in one of the parameters."""
        if not isinstance(tensor, Tensor) or not self._by_storage:
            return None
        key = _storage(tensor)
        copies = self._copies.get(key)
        # By a weak reference: its memory may go, and then lies elsewhere.
        if copies is not None and not copies.storage.expired():
            made = copies.made
            return Block(made.parameter, tensor, int(tensor.storage_offset()), made)
        value = self.constants.at(key, tensor)
        if value is not None:
            return Block(value.stand_in, tensor, int(tensor.storage_offset()))
        for parameter in self._by_storage.get(key, ()):
            offset = int(tensor.storage_offset()) - int(parameter.storage_offset())
            if tensor.dtype == parameter.dtype and 0 <= offset < parameter.numel():
                return Block(parameter, tensor, offset)
        return None

    def _weight(self, tensor: Any) -> Block | None:
        """Where a tensor lies, if that can be the weight of a layer."""
        block = self.located(tensor)
        return block if block is not None and self._is_weight(block) else None

    def _is_weight(self, block: Block) -> bool:
        value = self.constants.standing(block.parameter)
        if value is None:
            return id(block.parameter) in self._weights
        return value.stand_in.is_floating_point() and bool(value.sources & self._weight_names)

    def _is_read(self, func: Any, blocks: Sequence[Block], result: Any) -> bool:
        name = getattr(func, "__name__", "")
        # In place: `copy_`, but not `__get__` and other special names.
        if name in _READS or (name.endswith("_") and not name.endswith("__")):
            return name != "requires_grad_"
        if name.startswith("new_") or name.endswith("_like"):
            return False
        with torch._C.DisableTorchFunction():
            inside = {_storage(block.tensor) for block in blocks}
            # In place without a name that says so: `F.relu(w, inplace=True)`.
            if any(self.constants.is_written(_storage(b.tensor), b.tensor) for b in blocks):
                return True
            return any(_storage(tensor) not in inside for tensor in tensors_in(result))

    def _numbers(self, func: Any, args: Any, blocks: Sequence[Block]) -> Sequence[Block]:
        # Of `x.to(weight)` and `x.type_as(weight)` the weight gives its type alone.
        if getattr(func, "__name__", "") in ("to", "type_as", "expand_as", "view_as"):
            with torch._C.DisableTorchFunction():
                first = self.located(args[0])
            return [] if first is None else [first]
        return blocks


def is_lookup(call: WeightCall) -> bool:
    """Whether ``F.embedding`` looks up whole matrices, which are rows of a flattened parameter."""
    return call.use.kind == "embedding" and call.parameter.ndim > 2


def how_read(func: Any, block: Block) -> str:
    """How a function reads a parameter that it does not read as a layer's weight, for people."""
    name = "no function that is known" if func is None else getattr(func, "__name__", str(func))
    if block.parameter.is_meta:
        return f"computed into a tensor that is read by {name}{_beside(name)}"
    if block.gathered is None:
        return f"read by {name}{_beside(name)}"
    return f"picked from by {block.gathered.how}, and then read by {name}"


def _beside(name: str) -> str:
    """What a function has read besides, which alone has kept it from computing a weight."""
    if name in _BESIDE:
        return " with numbers that are no parameters: data, or made in the forward"
    return ", at places that a mask or data picks" if name == "__getitem__" else ""


def _storage(tensor: Tensor) -> int:
    # Identity of the storage and not its address, which tensors without numbers do not have.
    try:
        return int(tensor.untyped_storage()._cdata)
    # Where many examples are differentiated at once (vmap), tensors have none: it is no parameter.
    except NotImplementedError:
        return 0
