"""One forward pass, operation by operation: what is held in memory when, and what feeds what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from mpq.network.arguments import tensors_in
from mpq.network.examples import Batch
from mpq.network.layer import OPERANDS, Layer
from mpq.network.liveness import Lifetimes, Step, Value
from mpq.network.operand import Operand
from mpq.network.same_start import inputs_as_given, own_inputs

_NUM_EXAMPLES = 2  # one would let a squeeze() take the batch axis away
SHAPE_FAILURES: Final = (RuntimeError, ValueError, IndexError, AssertionError)
"""What torch, and networks themselves, say of shapes that do not fit."""
_ELEMENTWISE: Final = frozenset(
    {"_to_copy", "native_batch_norm", "cudnn_batch_norm", "hardswish", "constant_pad_nd"}
)
"""Elementwise, though not tagged by torch: in evaluation mode, or where nothing is padded."""
_NOT_ELEMENTWISE: Final = frozenset({"clone"})
"""Tagged as elementwise by torch, though they may change the order in memory."""


@final
@dataclass(frozen=True)
class Dataflow:
    """What one forward pass showed of the tensors between layers.

    Args:
        lifetimes: Which tensors are held in which step.
        fed_by: Layer to the layers whose outputs reach its input through operations that are no
            quantizable layers.
    """

    lifetimes: Lifetimes
    fed_by: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, module: nn.Module, batch: Batch, layers: Sequence[Layer]) -> "Dataflow":
        """Runs the module on two examples, or on all where those do not do.

        They do not where they fail to reach every layer, or the module takes whole batches only.

        Steps are the operations that torch runs. What depends on no input (positions, causal masks)
        is a constant, as parameters are, and no tensor here. Outputs are the tensors in the
        module's output, in tuples, lists and mappings.

        Args:
            module: In evaluation mode; left as found.
            batch: Examples, ``[N, ...]``, on the module's device.
            layers: ``[L]`` that the trace found, in the order of their first call.
        """
        names = [layer.name for layer in layers]
        few = batch.slice(0, min(_NUM_EXAMPLES, batch.size))
        try:
            recorder = _run(module, few, names)
        # A module may have its batch size built in, in a reshape for example.
        except SHAPE_FAILURES:
            recorder = _run(module, batch, names)
        # A router chooses experts by the input: two examples may leave some of them idle.
        if set(recorder.fed_by) != set(names):
            recorder = _run(module, batch, names)
        return recorder.found(names)


def is_elementwise(func: Any) -> bool:
    """Whether an operation, as torch's dispatcher has it, may overwrite what it reads."""
    operation = func._schema.name.partition("::")[2]
    is_tagged = torch.Tag.pointwise in func.tags and operation not in _NOT_ELEMENTWISE
    return is_tagged or operation in _ELEMENTWISE


def with_sources(layers: Sequence[Layer], dataflow: Dataflow) -> tuple[Layer, ...]:
    """The layers with ``fed_by``, as far as it names one of them."""
    names = {layer.name for layer in layers}
    return tuple(
        replace(x, fed_by=tuple(n for n in dataflow.fed_by.get(x.name, ()) if n in names))
        for x in layers
    )


def _run(module: nn.Module, batch: Batch, names: Sequence[str]) -> "_Recorder":
    # Copied here and not within: that would be a step of the network.
    batch = Batch(*own_inputs(batch.args, batch.kwargs), is_whole=batch.is_whole)
    recorder = _Recorder(batch)
    handles = []
    for name in names:
        layer_module = module.get_submodule(name)
        # Between the two hooks nothing is recorded: a layer is one step, whatever it does inside.
        handles.append(layer_module.register_forward_pre_hook(recorder.entering))
        leaving = recorder.leaving(name, _is_operand(layer_module))
        handles.append(layer_module.register_forward_hook(leaving, with_kwargs=True))
    try:
        with torch.no_grad(), inputs_as_given(), recorder:
            output = module(*batch.args, **batch.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    recorder.outputs = recorder.known(tensors_in(output))
    return recorder


def _is_operand(layer_module: nn.Module) -> bool:
    return isinstance(layer_module, Operand) and layer_module.kind in OPERANDS


@dataclass
class _Origin:
    """A storage that depends on the input, and the layers that reach it through other steps."""

    value: int
    layers: set[str]


class _Recorder(TorchDispatchMode):
    """Writes down what every operation outside quantizable layers reads and writes.

    A storage is known by a weak reference: its memory may go, its address is not used again.
    """

    def __init__(self, batch: Batch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._size = batch.size
        self._origins: dict[StorageWeakRef, _Origin] = {}
        self._depth = 0
        self._names: dict[str, int] = {}
        self._last_layer: str | None = None
        self.values: list[Value] = []
        self.steps: list[Step] = []
        self.fed_by: dict[str, set[str]] = {}
        self.outputs: list[int] = []
        # The inputs are the only origins: what none of them reaches is a constant.
        given = [*batch.args, *batch.kwargs.values()]
        self.inputs = [self._add(t, t.numel(), set()) for t in tensors_in(given)]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, to keep it away from here: several seconds.
        return False

    def known(self, tensors: Sequence[Tensor]) -> list[int]:
        """Values of those tensors that depend on the input, each once."""
        return list(dict.fromkeys(origin.value for origin in self._found(tensors)))

    def entering(self, *_: Any) -> None:
        """Before a layer."""
        # A depth and not a flag, as a quantizable layer may call another one.
        self._depth += 1

    def leaving(
        self, name: str, is_operand: bool = False
    ) -> Callable[[nn.Module, Any, Any, Any], None]:
        """After a layer: one step, whatever it did inside."""

        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._depth -= 1
            origins = self._found(tensors_in([args, kwargs]))
            feeding = self.fed_by.setdefault(name, set())
            feeding.update(layer for origin in origins for layer in origin.layers)
            # What the layer read ends here: whoever reads its output is fed by it alone.
            # An operand is the tensor itself, in the format that the layer says.
            given = [] if is_operand else tensors_in(output)
            made = [self._add(tensor, tensor.numel(), {name}) for tensor in given]
            reads = tuple(dict.fromkeys(origin.value for origin in origins))
            self._last_layer = name
            self.steps.append(Step(self._unique(name), reads, tuple(made), name))

        return hook

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._depth:
            self._record(func, tensors_in([args, kwargs or {}]), tensors_in(result))
        return result

    def _record(self, func: Any, read: list[Tensor], written: list[Tensor]) -> None:
        origins = self._found(read)
        operation = func._schema.name.partition("::")[2]
        if not origins or operation.startswith("new_") or operation.endswith("_like"):
            return  # made of nothing, or of a shape
        # A view shares its input's storage and is no value of its own.
        is_mutable, given = func._schema.is_mutable, set(map(_key, read))
        layers = {layer for origin in origins for layer in origin.layers}
        writes = []
        for tensor in written:
            origin = self._origins.get(_key(tensor))
            if origin is not None and is_mutable:
                # `x.add_(y)`: the same memory, reached by the layers of both from here on.
                origin.layers |= layers
                writes.append(origin.value)
            elif origin is None and (is_mutable or _key(tensor) not in given):
                # What is written piece by piece is there as a whole.
                whole = tensor.untyped_storage().nbytes() // tensor.element_size()
                writes.append(self._add(tensor, whole if is_mutable else tensor.numel(), layers))
        if writes:
            self._step(func, operation, origins, writes)

    def _step(
        self, func: Any, operation: str, origins: Sequence[_Origin], writes: list[int]
    ) -> None:
        where = f"after {self._last_layer}" if self._last_layer is not None else "at the start"
        reads = tuple(dict.fromkeys(origin.value for origin in origins))
        name = self._unique(f"{operation.strip('_')} {where}")
        self.steps.append(Step(name, reads, tuple(writes), None, is_elementwise(func)))

    def _add(self, tensor: Tensor, count: int, layers: set[str]) -> int:
        # Ids are int64 by torch's custom alone; 32 bits hold any index that a device needs.
        bits = None if tensor.is_floating_point() else 8 if tensor.dtype == torch.bool else 32
        # A complex number is two, which no format rounds.
        count *= 2 if tensor.is_complex() else 1
        self.values.append(Value(-(-count // self._size), bits))
        # A copy of the set, as in-place operations widen it for this storage only.
        self._origins[_key(tensor)] = _Origin(len(self.values) - 1, set(layers))
        return len(self.values) - 1

    def _found(self, tensors: Sequence[Tensor]) -> list[_Origin]:
        found = (self._origins.get(_key(tensor)) for tensor in tensors)
        return [origin for origin in found if origin is not None]

    def _unique(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name} ({count})"

    def found(self, names: Sequence[str]) -> Dataflow:
        """What was written down; ``names`` give the order of the layers."""
        lifetimes = Lifetimes.of(self.values, self.steps, self.inputs, self.outputs)
        fed_by = {
            name: tuple(other for other in names if other in feeding and other != name)
            for name, feeding in self.fed_by.items()
        }
        return Dataflow(lifetimes, fed_by)


def _key(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())
