"""One hooked forward pass: which layers there are, what they read, and what reads them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from mpq.network.arguments import read_by, tensors_in
from mpq.network.choices import Choices
from mpq.network.dataflow import SHAPE_FAILURES
from mpq.network.examples import Batch
from mpq.network.layer import Layer
from mpq.network.metric import KL, OutputMetric
from mpq.network.opened import Opened
from mpq.network.operand import Operand
from mpq.network.own_forward import Forwards
from mpq.network.refusals import weight_refusal
from mpq.network.weight_layout import is_hugging_face_conv1d, layout_of

KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.Embedding: "embedding",
}
"""Module classes that are quantizable layers, and what a profile calls them."""
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def kind_of(module: nn.Module) -> str | None:
    """Kind of a quantizable layer, ``None`` for any other module."""
    if isinstance(module, Operand):
        return module.kind
    # No subclass of nn.Linear, but the same product with the weight stored as [I, O].
    if is_hugging_face_conv1d(module):
        return "linear"
    # Its weight is a layer of its own, as it is used without a call of this module. Where only
    # other parameters of it are (LoRA's in a subclass of Linear), it stays a layer beside them.
    if isinstance(module, Opened) and "weight" not in module._parameters:
        return None
    return next((kind for cls, kind in KINDS.items() if isinstance(module, cls)), None)


@final
@dataclass(frozen=True)
class Trace:
    """What one forward pass showed.

    Args:
        layers: In the order of their first call.
        foldable: Convolution to the BatchNorm that alone reads its output.
        refused: Called modules of a layer's kind that cannot be layers, and a sentence why.
    """

    layers: tuple[Layer, ...]
    foldable: Mapping[str, str]
    refused: Mapping[str, str]


@dataclass
class _Seen:
    """What is known of one layer so far."""

    inputs: list[Tensor] = field(default_factory=list)  # kept alive: their addresses are identities
    outputs: list[Tensor] = field(default_factory=list)
    first_input: Any = None
    macs: int = 0  # of operands, which are told


def trace(module: nn.Module, batch: Batch, metric: OutputMetric = KL) -> Trace:
    """Runs one batch through the module and reports its layers.

    A pass before that finds the layers with a forward of their own (``Forwards``).

    Raises:
        ModelError: If the metric cannot read the output.
    """
    names = {name: m for name, m in module.named_modules() if _holds_weights(m)}
    # What hands on its input as it came has nothing of its own to find out.
    plain = {name: m for name, m in names.items() if not isinstance(m, Operand)}
    forwards = Forwards.of(module, batch, plain)
    names = {name: m for name, m in names.items() if name not in forwards.refused}
    # Subclasses may do more than normalise.
    norms = {name: m for name, m in module.named_modules() if type(m) in _NORMS}
    seen = {name: _Seen() for name in [*names, *norms]}
    order: list[str] = []
    refused = dict(forwards.refused)
    readers, choices = _CountReaders(), Choices()

    def record(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def hook(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            x = read_by(args, kwargs, output)
            if not x.numel():
                return  # nothing reaches it: an expert without tokens, a head without boxes
            if name not in order:
                order.append(name)
            # Now and not afterwards: an operation in place would raise the version meanwhile.
            seen[name].first_input = seen[name].first_input or _identity(x)
            seen[name].inputs.append(x)
            seen[name].outputs.append(output)
            readers.watch(output)
            if isinstance(m, Operand):
                seen[name].macs += m.macs
            elif name in names:
                choices.says(name, output)

        return hook

    handles = [
        m.register_forward_hook(record(n), with_kwargs=True)
        for n, m in [*names.items(), *norms.items()]
    ]
    try:
        with torch.no_grad(), readers, choices:
            output = module(*batch.args, **batch.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    # For its refusals alone, before anything is measured.
    metric.positions(output)
    refused |= _unroundable({name: names[name] for name in order if name in names})
    called = [name for name in order if name in names and name not in refused]
    axes = _batch_axes(
        module, batch, {name: (names[name], seen[name].inputs[0]) for name in called}
    )
    layers = _layers(module, called, names, seen, batch.size, axes)
    layers = tuple(
        replace(
            x,
            has_own_forward=x.name in forwards.own,
            is_hooked=x.name in forwards.hooked,
            is_choosing=x.name in choices.layers,
        )
        for x in layers
    )
    # Without the refused: what is computed anew would undo a folding.
    kept = {name: m for name, m in plain.items() if name not in refused}
    foldable = {
        name: norm
        for name, norm in _foldable(kept, norms, seen, readers).items()
        if name not in forwards.own - forwards.scaling
    }
    return Trace(layers, foldable, refused)


def _unroundable(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    found = {name: weight_refusal(name, layer_module) for name, layer_module in layers.items()}
    return {name: why for name, why in found.items() if why}


def _holds_weights(module: nn.Module) -> bool:
    """Whether there is anything to quantize: ``nn.Linear(8, 0)`` holds nothing."""
    if kind_of(module) is None or isinstance(module, Operand):
        return isinstance(module, Operand)
    weight = module.weight
    return not isinstance(weight, Tensor) or weight.numel() > 0


def _batch_axes(
    module: nn.Module, batch: Batch, read: Mapping[str, tuple[nn.Module, Tensor]]
) -> dict[str, int]:
    """Layer to the axis of examples in what its first call read: 1 in a sequence-first network."""
    maybe = {name: x for name, (m, x) in read.items() if _may_be_second(m, x, batch.size)}
    axes = dict.fromkeys(read, 0)
    if batch.size == 1 or not maybe:
        return axes | dict.fromkeys(maybe, 1)
    # Positions, windows or channels may be as many as examples: those alone change with the batch.
    try:
        fewer = _first_shapes(
            module, batch.slice(0, batch.size - 1), {n: read[n][0] for n in maybe}
        )
    # A module may have its batch size built in.
    except SHAPE_FAILURES:
        return axes | {name: int(x.shape[0] != batch.size) for name, x in maybe.items()}
    for name, x in maybe.items():
        was, now = tuple(x.shape[:2]), fewer.get(name, ())[:2]
        axes[name] = int(now == (was[0], batch.size - 1))
    return axes


def _may_be_second(layer: nn.Module, x: Tensor, batch_size: int) -> bool:
    # The last axis of floats is features, while token ids have none; convolutions have theirs
    # second, behind the examples.
    axes = x.ndim - x.is_floating_point()
    is_row_wise = kind_of(layer) in ("linear", "embedding")
    is_second = is_row_wise and axes > 1 and x.shape[1] == batch_size
    return is_second and (batch_size > 1 or x.shape[0] != 1)


def _first_shapes(
    module: nn.Module, batch: Batch, layers: Mapping[str, nn.Module]
) -> dict[str, tuple[int, ...]]:
    """Shapes of what layers read in their first calls."""
    found: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x = read_by(args, kwargs, output)
            if x.numel():
                found.setdefault(name, tuple(x.shape))

        return hook

    handles = [m.register_forward_hook(record(n), with_kwargs=True) for n, m in layers.items()]
    try:
        with torch.no_grad():
            module(*batch.args, **batch.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Two tensors with the same identity, both alive, hold the same numbers."""
    # Tensors of inference mode have no version, and asking for it raises.
    version = 0 if tensor.is_inference() else tensor._version
    # Storage and offset tell slices apart, the version what an in-place ReLU changed between
    # two readers.
    place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), version)
    return (*place, tuple(tensor.shape), tensor.stride(), tensor.dtype)


class _CountReaders(TorchFunctionMode):
    """Counts how many torch functions make something out of a watched tensor."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[int, int] = {}
        self._alive: list[Tensor] = []

    def watch(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and id(tensor) not in self._counts:
            self._counts[id(tensor)] = 0
            # An id is given anew once its object is gone: a count would go on for a stranger.
            self._alive.append(tensor)

    def of(self, tensor: Tensor) -> int:
        return self._counts[id(tensor)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if tensors_in(result):  # asking for a shape is not reading
            for read in {id(tensor) for tensor in tensors_in([*args, *kwargs.values()])}:
                if read in self._counts:
                    self._counts[read] += 1
        return result


def _foldable(
    layers: Mapping[str, nn.Module],
    norms: Mapping[str, nn.Module],
    seen: Mapping[str, _Seen],
    readers: _CountReaders,
) -> dict[str, str]:
    """Layers whose only reader is a BatchNorm with running statistics, both called once."""
    # A layer that is called twice may feed two BatchNorms, or one with one output only.
    owner = {id(seen[name].outputs[0]): name for name in layers if len(seen[name].outputs) == 1}
    pairs: dict[str, str] = {}
    shared = _shared_parameters(layers)
    for name, norm in norms.items():
        assert isinstance(norm, _BatchNorm)
        if len(seen[name].inputs) != 1 or norm.running_mean is None:
            continue
        feeding = owner.get(id(seen[name].inputs[0]))
        # Whoever shares the weight would get it folded; an embedding has no bias for the shift.
        if feeding is None or feeding in shared or kind_of(layers[feeding]) == "embedding":
            continue
        # BatchNorm1d reads [N, T, C] with the channels second, a linear layer has them last.
        is_channel_axis = kind_of(layers[feeding]) != "linear" or seen[name].inputs[0].ndim == 2
        # The BatchNorm is one reader; any other would see the output before it is normalised.
        if is_channel_axis and readers.of(seen[feeding].outputs[0]) == 1:
            pairs[feeding] = name
    return pairs


def _shared_parameters(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Layers whose weight another layer uses too, and the first of those layers."""
    owners: dict[int, list[str]] = {}
    for name, module in layers.items():
        owners.setdefault(id(module.weight), []).append(name)
    return {name: users[0] for users in owners.values() if len(users) > 1 for name in users}


def _layers(
    module: nn.Module,
    called: list[str],
    names: Mapping[str, nn.Module],
    seen: Mapping[str, _Seen],
    batch_size: int,
    axes: Mapping[str, int],
) -> tuple[Layer, ...]:
    aliases = _aliases(module)
    owner = _shared_parameters({name: names[name] for name in called})
    readers: dict[tuple[Any, ...], str] = {}
    layers = []
    for name in called:
        is_quantized = seen[name].inputs[0].is_floating_point()  # token ids are not
        # Readers of one tensor share its quantized copy, so that they are tied to one format. What
        # has no weight has other candidates.
        key = (isinstance(names[name], Operand), seen[name].first_input)
        reader = readers.setdefault(key, name) if is_quantized else name
        layers.append(
            _layer(
                name,
                names[name],
                seen[name],
                batch_size,
                axes[name],
                aliases.get(name, ()),
                reader if reader != name else None,
                owner.get(name) if owner.get(name) != name else None,
            )
        )
    return tuple(layers)


def _aliases(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Further names of modules that have several."""
    first: dict[int, str] = {}
    others: dict[str, tuple[str, ...]] = {}
    for name, child in module.named_modules(remove_duplicate=False):
        original = first.setdefault(id(child), name)
        if original != name:
            others[original] = (*others.get(original, ()), name)
    return others


def _layer(
    name: str,
    module: nn.Module,
    seen: _Seen,
    batch_size: int,
    batch_axis: int,
    aliases: tuple[str, ...],
    input_of: str | None,
    weight_of: str | None,
) -> Layer:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    kind = kind_of(module)
    assert kind is not None
    # Calls may be of unlike lengths, so that numbers are added up and not multiplied.
    read = sum(x.numel() for x in seen.inputs) / batch_size
    written = sum(x.numel() for x in seen.outputs) / batch_size
    groups = getattr(module, "groups", 1)
    return Layer(
        name=name,
        kind=kind,
        weight_shape=tuple(weight.shape),
        num_channels=len(layout_of(module).to_rows(weight)),
        input_shape=_example_shape(seen.inputs[0], batch_size, batch_axis),
        output_shape=_example_shape(seen.outputs[0], batch_size, batch_axis),
        input_elements=round(read),
        output_elements=round(written),
        macs=round(_macs(kind, module, read, written) + seen.macs / batch_size),
        calls=len(seen.inputs),
        groups=groups,
        batch_axis=batch_axis,
        aliases=aliases,
        input_of=input_of,
        weight_of=weight_of,
        is_transposed=bool(vars(module).get("is_transposed")),
        original_bits=8 * weight.element_size(),
        computed=vars(module).get("computed", ""),
        query_heads=vars(module).get("query_heads", 0),
        most_tokens=vars(module).get("most_tokens"),
    )


def _example_shape(tensor: Tensor, batch_size: int, axis: int) -> tuple[int, ...]:
    shape = list(tensor.shape)
    if axis < len(shape) and shape[axis] == batch_size:
        del shape[axis]
    return tuple(shape)


def _macs(kind: str, module: nn.Module, read: float, written: float) -> float:
    """Multiply-accumulates for so many numbers read and written."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if kind == "embedding" or isinstance(module, Operand):
        return 0.0
    if kind == "linear":
        per_output = weight.numel() / len(layout_of(module).to_rows(weight))
        return written * per_output
    if kind.startswith("conv_transpose"):
        # Each number read meets the kernels of all outputs of its group: [I, O / groups, ...].
        return read * prod(weight.shape[1:])
    return written * prod(weight.shape[1:])
