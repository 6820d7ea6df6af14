"""One forward pass as operations on images, as far as windows of them can be computed."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

from mpq.errors import ModelError, MpqError
from mpq.network.arguments import tensors_in
from mpq.network.dataflow import SHAPE_FAILURES, is_elementwise
from mpq.network.examples import Batch
from mpq.network.modules import check_model, device_of, hooks
from mpq.network.patches.operations import WindowedOperation, windowed
from mpq.network.same_start import own_inputs

_AXES: Final = 4
"""Of images: examples, channels, rows and columns."""


@final
@dataclass(frozen=True)
class Image:
    """A tensor of a forward pass, for one example.

    Args:
        elements: Numbers in it.
        plane: Rows and columns; ``None``: it is no image.
        bits: Of a number that is none of the network's (ids, masks); ``None``: of an activation.
    """

    elements: int
    plane: tuple[int, int] | None
    bits: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, rows and columns; of what is no image, nothing."""
        return () if self.plane is None else (self.channels, *self.plane)

    @property
    def channels(self) -> int:
        """Numbers at each position; of what is no image, none."""
        return 0 if self.plane is None else self.elements // (self.plane[0] * self.plane[1])


@final
@dataclass(frozen=True, eq=False)
class Operation:
    """One operation of a forward pass.

    Args:
        name: The module's, or what is done in it; different from every other's.
        reads: Positions of the images that it reads.
        writes: Positions of those that it makes, or changes.
        windowed: How windows of it are computed, or a sentence why they cannot be.
        macs: Multiply-accumulates for one example.
        is_elementwise: Whether its output may overwrite an input.
    """

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    windowed: WindowedOperation | str
    macs: int
    is_elementwise: bool


@final
@dataclass(frozen=True, eq=False)
class Recorded:
    """What one forward pass does.

    Args:
        images: What operations refer to by position; the network's inputs come first.
        operations: In the order of execution.
        num_inputs: How many of the images are inputs.
        outputs: Images that the network returns.
    """

    images: tuple[Image, ...]
    operations: tuple[Operation, ...]
    num_inputs: int
    outputs: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, data: Any) -> "Recorded":
        """Runs a batch through a network; nothing of either is changed.

        Args:
            model: The user's, in evaluation mode.
            data: One batch, as ``Batch.of`` takes it.

        Raises:
            DataError: If the data is no batch.
            ModelError: See ``check_model``; or if the network does not run on such inputs.
        """
        check_model(model)
        batch = Batch.of(data).to(device_of(model))
        try:
            return cls._of_own(model, Batch(*own_inputs(batch.args, batch.kwargs)))
        except MpqError:
            raise
        # In the network's words, as its layers say what they take.
        except SHAPE_FAILURES as error:
            shapes = ", ".join("x".join(map(str, x.shape)) for x in batch.tensors)
            raise ModelError(f"the network does not run on inputs of {shapes}: {error}") from error

    @classmethod
    def _of_own(cls, model: nn.Module, batch: Batch) -> "Recorded":
        record = Record(batch)
        with torch.no_grad(), record.naming(model), _Recorder(record):
            output = model(*batch.args, **batch.kwargs)
        return record.recorded(tensors_in(output))


@final
class Record:
    """What is written down while a pass runs.

    Tensors that depend on the input are known by their storage: a view is the tensor itself. What
    an operation on windows changes in place is another image from then on.
    """

    def __init__(self, batch: Batch) -> None:
        self.operations: list[Operation] = []
        self._images: list[Image] = []
        self._size = batch.size
        # Weak references: their memory may go, their addresses are not used again meanwhile.
        self._places: dict[StorageWeakRef, int] = {}
        self._shapes: list[torch.Size] = []
        self._within: list[tuple[str, bool]] = []
        self._names: dict[str, int] = {}
        for tensor in batch.tensors:
            self._add(tensor, tensor.shape)
        self._num_inputs = len(self._images)

    def recorded(self, outputs: Sequence[Tensor]) -> Recorded:
        """All that was written down of a pass that returns these."""
        places = tuple(self._places[_key(x)] for x in self.dependent(outputs))
        return Recorded(
            tuple(self._images), tuple(self.operations), self._num_inputs, places
        )  # fmt: skip

    def naming(self, module: nn.Module) -> AbstractContextManager[None]:
        """Within this block operations are called as the module that they run in."""
        return hooks(self._naming_hooks(module))

    def _naming_hooks(self, module: nn.Module) -> Iterator[RemovableHandle]:
        for name, part in module.named_modules():
            within = (name, next(part.children(), None) is None)
            yield part.register_forward_pre_hook(partial(self._enter, within))
            # Also after an error, which the forward around it may catch.
            yield part.register_forward_hook(partial(self._leave, within), always_call=True)

    def _enter(self, within: tuple[str, bool], *_: Any) -> None:
        self._within.append(within)

    def _leave(self, within: tuple[str, bool], *_: Any) -> None:
        # It was never entered where a hook of the user's own failed before ours.
        if self._within and self._within[-1] == within:
            self._within.pop()

    def dependent(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Those that depend on the input, as often as they come."""
        return [x for x in tensors if _key(x) in self._places]

    def write(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Writes an operation down, if it depends on the input."""
        read, made = self.dependent(tensors_in([args, kwargs])), tensors_in(result)
        operation = func._schema.name.partition("::")[2]
        if not read or is_idle(func) or self._is_reshaped(func, made, read):
            return
        shapes = [self._shapes[self._places[_key(x)]] for x in read]
        how = windowed(func, args, kwargs, read, shapes, made)
        # A view of another shape ends the chain, and is read where somebody reads its numbers.
        is_view = isinstance(how, str) and not func._schema.is_mutable and self._are_known(made)
        reads = () if is_view else tuple(self._places[_key(x)] for x in read)
        writes = () if is_view else tuple(self._written(how, made, shapes[0]))
        macs = _macs(func, args, kwargs, result) // self._size
        name = self._name(operation.strip("_"))
        self.operations.append(Operation(name, reads, writes, how, macs, is_elementwise(func)))

    def _is_reshaped(self, func: Any, made: Sequence[Tensor], read: Sequence[Tensor]) -> bool:
        """Whether an operation only hands on what it reads, in this shape or another (``detach``).

        Whoever reads it in another shape is asked what it does with that.
        """
        if not func.is_view or len(made) != 1 or len(read) != 1:
            return False
        is_whole = made[0].numel() == prod(self._shapes[self._places[_key(read[0])]])
        return is_whole and made[0].is_contiguous() and read[0].is_contiguous()

    def _are_known(self, tensors: Sequence[Tensor]) -> bool:
        return all(_key(x) in self._places for x in tensors)

    def _written(
        self, how: WindowedOperation | str, made: Sequence[Tensor], shape: torch.Size
    ) -> Iterator[int]:
        for tensor in made:
            # What is written piece by piece stays the image that it is a piece of.
            if _key(tensor) not in self._places or not isinstance(how, str):
                is_flat = not isinstance(how, str) and tensor.ndim != _AXES
                self._add(tensor, shape if is_flat else tensor.shape)
            yield self._places[_key(tensor)]

    def _add(self, tensor: Tensor, shape: torch.Size) -> None:
        self._places[_key(tensor)] = len(self._images)
        self._shapes.append(shape)
        self._images.append(_image(tensor, shape, self._size))

    def _name(self, operation: str) -> str:
        where, is_leaf = self._within[-1] if self._within else ("", False)
        name = where if is_leaf and where else f"{operation} in {where or 'the network'}"
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name} ({count})"


class _Recorder(TorchDispatchMode):
    """Writes down every operation that runs."""

    def __init__(self, record: Record) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._record = record

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, to keep it away from here: several seconds.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._record.write(func, args, kwargs or {}, result)
        return result


def is_idle(func: Any) -> bool:
    """Whether an operation makes a tensor of a shape alone."""
    name = func._schema.name.partition("::")[2]
    return bool(name.startswith("new_") or name.endswith("_like"))


def _image(tensor: Tensor, shape: torch.Size, batch_size: int) -> Image:
    # Ids are int64 by torch's custom alone; 32 bits hold any index that a device needs.
    bits = None if tensor.is_floating_point() else 8 if tensor.dtype == torch.bool else 32
    plane = (shape[2], shape[3]) if len(shape) == _AXES else None
    return Image(-(-prod(shape) // batch_size), plane, bits)


def _macs(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Multiply-accumulates, by torch's own counts of products and sums."""
    count = flop_registry.get(func._overloadpacket)
    return 0 if count is None else count(*args, **kwargs, out_val=result) // 2


def _key(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())
