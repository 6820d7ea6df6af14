"""torch's operations as steps: what each of its arguments means here, and which are refused."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final, final

from torch import Tensor
from torch.fx import Node

from mpq.backends.c.steps import Shape, Step, Window
from mpq.errors import ModelError

ALIASES: Final = frozenset(
    {
        "alias", "clone", "contiguous", "detach", "dropout", "feature_dropout", "flatten",
        "reshape", "view", "_unsafe_view", "squeeze", "unsqueeze", "lift_fresh_copy",
    }
)  # fmt: skip
"""Operations after which the numbers lie as before: of one example, in evaluation mode."""


@final
@dataclass(frozen=True)
class Found:
    """What has been read so far.

    Args:
        parameters: Placeholder to the parameter's name.
        tensors: Name to parameter; one that is shared has several names.
        names: Node to the name of the tensor that it is, under all its views.
        steps: In the order of execution.
    """

    parameters: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    names: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def tensor(self, node: Any) -> str:
        """The tensor that a node is.

        Raises:
            ModelError: If it is a number, a parameter or a buffer.
        """
        if not isinstance(node, Node):
            raise ModelError(f"it computes with tensors, and here is {node!r}")
        return self.names[node.name]

    def layer(self, weight: Any, bias: Any) -> str:
        """The layer whose weight and bias these are.

        Raises:
            ModelError: If they are computed, no layer's, or two layers'.
        """
        name = self.parameters.get(weight.name, "") if isinstance(weight, Node) else ""
        layer = name.removesuffix(".weight")
        if layer == name:
            raise ModelError("its weight is computed, or a parameter of no layer")
        known = f"{layer}.bias" if bias is None else self.parameters.get(bias.name, "")
        if known != f"{layer}.bias":
            other = known.removesuffix(".bias")
            if other != known and self._is_shared(name, f"{other}.weight"):
                raise ModelError(
                    f"layers {other!r} and {layer!r} share a weight, and it stores one for every "
                    "layer: give each its own, nn.Parameter(weight.detach().clone())"
                )
            raise ModelError(f"the bias of layer {layer!r} is computed, or another layer's")
        return layer

    def _is_shared(self, one: str, other: str) -> bool:
        first, second = self.tensors.get(one), self.tensors.get(other)
        return first is not None and second is not None and first.data_ptr() == second.data_ptr()


def shape_of(node: Node) -> Shape:
    """Shape of one example.

    Raises:
        ModelError: If it has more than three axes.
    """
    sizes = tuple(int(size) for size in node.meta["val"].shape[1:])
    if len(sizes) > 3:
        raise ModelError(f"it knows tensors of at most three axes, and this has {sizes}")
    if len(sizes) == 2:  # a line has a height of 1
        return (sizes[0], 1, sizes[1])
    channels, height, width = (*sizes, 1, 1, 1)[:3]
    return (channels, height, width)


def pair(value: Any, height: int = 1) -> tuple[int, int]:
    """Height and width of an argument; of a line one number, and a height that does nothing."""
    if not isinstance(value, list | tuple):
        return int(value), int(value)
    return (int(value[0]), int(value[1])) if len(value) == 2 else (height, int(value[0]))


def _given(node: Node) -> dict[str, Any]:
    """All arguments by name, with torch's defaults."""
    schema = node.target._schema  # type: ignore[union-attr]
    found = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    names = [argument.name for argument in schema.arguments]
    return {**found, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _shapes(source: Node, node: Node) -> tuple[Shape, Shape]:
    return shape_of(source), shape_of(node)


def _convolution(node: Node, found: Found) -> Step:
    given = _given(node)
    source, padding = given["input"], given["padding"]
    kernel = pair(list(given["weight"].meta["val"].shape[2:]))
    dilation = pair(given["dilation"])
    if padding == "same":
        # What is missing below and on the right is known from the output's size.
        rows = (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)
    else:
        rows = (0, 0) if padding == "valid" else pair(padding, height=0)
    window = Window(kernel, pair(given["stride"]), rows, dilation, int(given["groups"]))
    layer = found.layer(given["weight"], given["bias"])
    reads = (found.tensor(source),)
    return Step("layer", reads, node.name, _shapes(source, node), window, layer)


def _linear(node: Node, found: Found) -> Step:
    given = _given(node)
    source = given["input"]
    layer = found.layer(given["weight"], given["bias"])
    if source.meta["val"].ndim != 2:
        raise ModelError(f"layer {layer!r} reads several vectors of an example")
    reads = (found.tensor(source),)
    return Step("layer", reads, node.name, _shapes(source, node), Window(), layer)


def _add(node: Node, found: Found) -> Step:
    given = _given(node)
    first, second = given["self"], given["other"]
    if given.get("alpha", 1) != 1:
        raise ModelError(f"it adds without a factor, and here is {given['alpha']}")
    reads = (found.tensor(first), found.tensor(second))
    if not shape_of(first) == shape_of(second) == shape_of(node):
        raise ModelError("it adds tensors of one shape")
    return Step("add", reads, node.name, _shapes(first, node))


def _clamp(low: str | float, high: str | float) -> Callable[[Node, Found], Step]:
    """A limit is a number, or the argument that holds it."""

    def reader(node: Node, found: Found) -> Step:
        given = _given(node)
        ends = [given.get(end) if isinstance(end, str) else end for end in (low, high)]
        below = -inf if ends[0] is None else ends[0]
        above = inf if ends[1] is None else ends[1]
        # Zero is a code of every format; a padding of zeros stays what it was.
        if not below <= 0 <= above:
            raise ModelError(f"it cuts to ranges with 0 in them, and here is {below} to {above}")
        reads, shapes = (found.tensor(given["self"]),), _shapes(given["self"], node)
        return Step("move", reads, node.name, shapes, low=float(below), high=float(above))

    return reader


def _pool(kind: str) -> Callable[[Node, Found], Step]:
    def reader(node: Node, found: Found) -> Step:
        given = _given(node)
        source, kernel = given["self"], pair(given["kernel_size"])
        stride = pair(given["stride"]) if given["stride"] else kernel
        padding, dilation = pair(given["padding"], height=0), pair(given.get("dilation", 1))
        is_even = not given["ceil_mode"] and (given.get("count_include_pad") or padding == (0, 0))
        if kind == "mean" and not (is_even and given.get("divisor_override") is None):
            raise ModelError("its means are of whole windows, zeros of the padding included")
        window = Window(kernel, stride, padding, dilation)
        return Step(kind, (found.tensor(source),), node.name, _shapes(source, node), window)

    return reader


def _adaptive(kind: str) -> Callable[[Node, Found], Step]:
    def reader(node: Node, found: Found) -> Step:
        source = node.args[0]
        assert isinstance(source, Node)
        before, after = _shapes(source, node)
        if before[1] % after[1] or before[2] % after[2]:
            raise ModelError(f"its windows are of one size: {before[1:]} to {after[1:]} are not")
        kernel = (before[1] // after[1], before[2] // after[2])
        window = Window(kernel, kernel)
        return Step(kind, (found.tensor(source),), node.name, (before, after), window)

    return reader


def _mean(node: Node, found: Found) -> Step:
    given = _given(node)
    source = given["self"]
    num_axes = source.meta["val"].ndim
    axes = sorted(int(axis) % num_axes for axis in given.get("dim") or range(num_axes))
    if num_axes < 3 or axes != list(range(2, num_axes)):
        raise ModelError("its means are over height and width, both")
    before = shape_of(source)
    window = Window(before[1:], before[1:])
    shapes = (before, (before[0], 1, 1))
    return Step("mean", (found.tensor(source),), node.name, shapes, window)


def _slice(node: Node, found: Found) -> Step:
    given = _given(node)
    source = given["self"]
    axis = int(given["dim"]) % source.meta["val"].ndim
    start, stride = int(given["start"] or 0), int(given["step"])
    before, after = _shapes(source, node)
    # Counted from the last one, as height and width always are.
    place = axis - source.meta["val"].ndim
    if place not in (-1, -2) or axis < 2:
        raise ModelError("it cuts height and width only")
    if start < 0:
        start += before[place]
    window = (
        Window(stride=(1, stride), padding=(0, -start))
        if place == -1
        else Window(stride=(stride, 1), padding=(-start, 0))
    )
    return Step("move", (found.tensor(source),), node.name, (before, after), window)


def _pad(node: Node, found: Found) -> Step:
    given = _given(node)
    source, widths = given["self"], [int(x) for x in given["pad"]]
    if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0, 0.0):
        raise ModelError("it pads with zeros")
    num_axes = source.meta["val"].ndim - 1
    # From the last axis on, the rows before and behind of each.
    before = [widths[2 * i] if 2 * i < len(widths) else 0 for i in range(num_axes)]
    if len(widths) > 2 * num_axes or num_axes < 2:
        raise ModelError("it pads channels, height and width")
    rows = (before[1], before[0]) if num_axes == 3 else (0, before[0])
    window = Window(padding=rows, channels_before=before[-1])
    return Step("move", (found.tensor(source),), node.name, _shapes(source, node), window)


READERS: Final[Mapping[str, Callable[[Node, Found], Step]]] = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "linear": _linear,
    "add": _add,
    "relu": _clamp(0.0, inf),
    "relu6": _clamp(0.0, 6.0),
    "hardtanh": _clamp("min_val", "max_val"),
    "clamp": _clamp("min", "max"),
    "clamp_min": _clamp("min", inf),
    "max_pool1d": _pool("max"),
    "max_pool2d": _pool("max"),
    "avg_pool1d": _pool("mean"),
    "avg_pool2d": _pool("mean"),
    "adaptive_avg_pool1d": _adaptive("mean"),
    "adaptive_avg_pool2d": _adaptive("mean"),
    "mean": _mean,
    "slice": _slice,
    "pad": _pad,
    "constant_pad_nd": _pad,
}
"""Operation to what reads it."""
