"""Operations that can be done on a window of the image, and what they read for it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from mpq.network.arguments import tensors_in
from mpq.network.dataflow import is_elementwise
from mpq.network.patches.windows import Reading, Span

Readings: TypeAlias = tuple[Reading, Reading]
"""Along rows, and along columns."""
Windows: TypeAlias = tuple[Span, Span]
"""Of rows, and of columns."""
_NORMS: Final = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
_OTHER_POSITIONWISE: Final = ("_native_batch_norm_legit_no_training", "_prelu_kernel", "clone")
"""Position by position, though torch does not say so of them."""
_IS_TRAINING: Final = 5
"""Position of the argument of ``_NORMS`` that says whether statistics are those of the batch."""
_EVERYWHERE: Final = (Reading(), Reading())


class WindowedOperation(ABC):
    """An operation on images, ``[N, C, H, W]``, of which any window can be computed alone."""

    @property
    @abstractmethod
    def readings(self) -> Readings:
        """What it reads for a stretch of its output; the same of all its inputs."""

    @property
    @abstractmethod
    def fill(self) -> float:
        """What inputs are padded with."""

    @abstractmethod
    def run(self, inputs: Sequence[Tensor], at: Windows, plane: tuple[int, int]) -> Tensor:
        """One window of the output.

        Args:
            inputs: All that it reads for the window, padding included: ``[N, C, h, w]``.
            at: Where the window lies in the output.
            plane: Rows and columns of the whole output.
        """


@final
@dataclass(frozen=True, eq=False)
class Convolution(WindowedOperation):
    """A convolution, with groups (depthwise), strides and dilation; ``args`` are torch's own."""

    args: tuple[Any, ...]

    @property
    def readings(self) -> Readings:
        """See ``WindowedOperation.readings``."""
        _, weight, _, stride, padding, dilation = self.args[:6]
        return _readings(weight.shape[2:], stride, padding, dilation)

    @property
    def fill(self) -> float:
        """See ``WindowedOperation.fill``."""
        return 0.0

    def run(self, inputs: Sequence[Tensor], at: Windows, plane: tuple[int, int]) -> Tensor:
        """See ``WindowedOperation.run``."""
        del at, plane
        _, weight, bias, stride, _, dilation, _, _, groups = self.args[:9]
        return F.conv2d(inputs[0], weight, bias, stride, 0, dilation, groups)


@final
@dataclass(frozen=True, eq=False)
class MaxPool(WindowedOperation):
    """The largest number of every window."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def readings(self) -> Readings:
        """See ``WindowedOperation.readings``."""
        return _readings(self.kernel, self.stride, self.padding, self.dilation)

    @property
    def fill(self) -> float:
        """See ``WindowedOperation.fill``: what no number is smaller than."""
        return -inf

    def run(self, inputs: Sequence[Tensor], at: Windows, plane: tuple[int, int]) -> Tensor:
        """See ``WindowedOperation.run``."""
        del at, plane
        return F.max_pool2d(inputs[0], self.kernel, self.stride, 0, self.dilation)


@final
@dataclass(frozen=True, eq=False)
class AveragePool(WindowedOperation):
    """The mean of every window; ``size`` are rows and columns of the whole input."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    has_padding_counted: bool
    divisor: int | None
    size: tuple[int, int]

    @property
    def readings(self) -> Readings:
        """See ``WindowedOperation.readings``."""
        return _readings(self.kernel, self.stride, self.padding, (1, 1))

    @property
    def fill(self) -> float:
        """See ``WindowedOperation.fill``."""
        return 0.0

    def run(self, inputs: Sequence[Tensor], at: Windows, plane: tuple[int, int]) -> Tensor:
        """See ``WindowedOperation.run``."""
        del plane
        divisor = self.divisor or (None if self.has_padding_counted else 1)
        pooled = F.avg_pool2d(inputs[0], self.kernel, self.stride, divisor_override=divisor)
        if self.has_padding_counted or self.divisor:
            return pooled
        rows, columns = (
            _num_real(reading, span, size)
            for reading, span, size in zip(self.readings, at, self.size, strict=True)
        )
        counts = torch.tensor(rows)[:, None] * torch.tensor(columns)  # [h, w]
        return pooled / counts.to(pooled)


@final
@dataclass(frozen=True, eq=False)
class Padding(WindowedOperation):
    """A border of one number around the image."""

    before: tuple[int, int]
    value: float

    @property
    def readings(self) -> Readings:
        """See ``WindowedOperation.readings``."""
        return Reading(before=self.before[0]), Reading(before=self.before[1])

    @property
    def fill(self) -> float:
        """See ``WindowedOperation.fill``."""
        return self.value

    def run(self, inputs: Sequence[Tensor], at: Windows, plane: tuple[int, int]) -> Tensor:
        """See ``WindowedOperation.run``: the border is there already."""
        del at, plane
        return inputs[0]


@final
@dataclass(frozen=True, eq=False)
class Positionwise(WindowedOperation):
    """What every position does with the channels of its own: activations, BatchNorm, additions.

    Args:
        func: Of torch.
        args: What it was called with.
        kwargs: The same, by name.
        read: Images among them, as often as they come.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    read: tuple[Tensor, ...]

    @property
    def readings(self) -> Readings:
        """See ``WindowedOperation.readings``."""
        return _EVERYWHERE

    @property
    def fill(self) -> float:
        """See ``WindowedOperation.fill``: nothing is padded."""
        return 0.0

    def run(self, inputs: Sequence[Tensor], at: Windows, plane: tuple[int, int]) -> Tensor:
        """See ``WindowedOperation.run``."""
        # Of a copy: another operation may read the window that this one would overwrite.
        is_mutable = self.func._schema.is_mutable
        own = [x.clone() if is_mutable else x for x in inputs]
        places = {id(whole): window for whole, window in zip(self.read, own, strict=True)}
        cuts_constants = torch.Tag.pointwise in self.func.tags

        def window(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in places:
                return places[id(value)]
            # One number may have more axes than an image, as a row that it was rounded in.
            if value.numel() == 1:
                return value.reshape(())
            return _cut(value, at, plane) if cuts_constants else value

        args, kwargs = tree_map(window, (self.args, dict(self.kwargs)))
        return tensors_in(self.func(*args, **kwargs))[0]


def windowed(
    func: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    read: Sequence[Tensor],
    shapes: Sequence[torch.Size],
    made: Sequence[Tensor],
) -> WindowedOperation | str:
    """The operation as one that windows can be computed of, or a sentence why it is none.

    Args:
        func: Of torch, as its dispatcher names it.
        args: What it was called with.
        kwargs: The same, by name.
        read: Tensors among them that depend on the network's input.
        shapes: Those that they were made in, as images; a view may have another one.
        made: Tensors that it returned.
    """
    name = func._schema.name.partition("::")[2]
    if _is_flat(func, args, kwargs, read, shapes, made):
        return Positionwise(func, args, kwargs, tuple(read))
    is_other = any(x.shape != shape for x, shape in zip(read, shapes, strict=True))
    if is_other or any(x.ndim != 4 for x in (*read, *made[:1])):
        return "reads or makes something else than images, [N, C, H, W]"
    if name in ("convolution", "_convolution"):
        return _convolution(args, read)
    # Arguments that are as by default are left out.
    if name == "max_pool2d_with_indices":
        return MaxPool(*_pool(args), _pair(args, 4, (1, 1)))
    if name == "avg_pool2d":
        return _average(args, read[0], made[0])
    if name == "constant_pad_nd":
        return _padding(args)
    if any(x.shape[2:] != made[0].shape[2:] for x in read):
        return "needs another part of the image than a window, or all of it"
    if _is_positionwise(func, name, args, kwargs):
        return Positionwise(func, args, kwargs, tuple(read))
    return "is not known to need a window only"


def _is_flat(
    func: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    read: Sequence[Tensor],
    shapes: Sequence[torch.Size],
    made: Sequence[Tensor],
) -> bool:
    """Whether the same is done with every number, whatever shape images have meanwhile.

    So are inputs of quantized layers rounded: in one row, by one scale.
    """
    if torch.Tag.pointwise not in func.tags or torch.Tag.nondeterministic_seeded in func.tags:
        return False
    given = {id(x) for x in read}
    constants = [x for x in tensors_in([args, kwargs]) if id(x) not in given]
    is_one_shape = len(shapes[0]) == 4 and len({*shapes}) == 1
    is_one_view = {x.shape for x in read} == {x.shape for x in made}
    return is_one_shape and is_one_view and all(x.numel() == 1 for x in constants)


def _is_positionwise(
    func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    if torch.Tag.nondeterministic_seeded in func.tags:
        return False
    if name in _NORMS:
        return not args[_IS_TRAINING]
    if name == "cat":
        return (args[1] if len(args) > 1 else kwargs.get("dim", 0)) in (1, -3)
    return is_elementwise(func) or name in _OTHER_POSITIONWISE


def _convolution(args: tuple[Any, ...], read: Sequence[Tensor]) -> WindowedOperation | str:
    if args[6]:
        return "is a transposed convolution"
    if len(read) != 1 or read[0] is not args[0]:
        return "has a weight that depends on the input"
    return Convolution(args)


def _pair(args: Sequence[Any], place: int, default: Sequence[int]) -> tuple[int, int]:
    """Two numbers, which torch writes as one where they are equal, and not at all by default."""
    found = args[place] if len(args) > place and args[place] else default
    numbers = (found,) if isinstance(found, int) else tuple(found)
    return numbers[0], numbers[-1]


def _pool(args: Sequence[Any]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Kernel, stride and padding."""
    kernel = _pair(args, 1, (1, 1))
    return kernel, _pair(args, 2, kernel), _pair(args, 3, (0, 0))


def _average(args: tuple[Any, ...], x: Tensor, out: Tensor) -> WindowedOperation | str:
    kernel, stride, padding = _pool(args)
    is_counted = bool(args[5]) if len(args) > 5 else True
    divisor = args[6] if len(args) > 6 else None
    size = (x.shape[2], x.shape[3])
    found = AveragePool(kernel, stride, padding, is_counted, divisor, size)
    for reading, length, pad, outputs in zip(
        found.readings, size, padding, out.shape[2:], strict=True
    ):
        # Of such windows torch divides by what lies within the padding.
        if reading.needed(Span(0, outputs)).stop > length + pad:
            return "has windows past its padding (ceil_mode)"
    return found


def _padding(args: tuple[Any, ...]) -> WindowedOperation | str:
    # Columns first, then rows, each before and after.
    pads = (*args[1], 0, 0, 0, 0)[: max(4, len(args[1]))]
    if len(pads) > 4 and any(pads[4:]):
        return "pads channels or examples"
    return Padding((pads[2], pads[0]), float(args[2]) if len(args) > 2 else 0.0)


def _readings(*of_axes: Sequence[int]) -> Readings:
    """From kernels, strides, paddings and dilations, each of rows and columns, or one of both."""
    rows, columns = (
        Reading(*(numbers[axis % len(numbers)] for numbers in of_axes)) for axis in (0, 1)
    )
    return rows, columns


def _num_real(reading: Reading, outputs: Span, size: int) -> list[int]:
    """How many positions of the input, padding aside, each output reads."""
    each = [reading.needed(Span(i, i + 1)) for i in range(outputs.start, outputs.stop)]
    return [min(span.stop, size) - max(span.start, 0) for span in each]


def _cut(constant: Tensor, at: Windows, plane: tuple[int, int]) -> Tensor:
    """A constant's window, where it has a number for every position (positions' embedding)."""
    for axis, span, size in ((-2, at[0], plane[0]), (-1, at[1], plane[1])):
        # One row or one number is broadcast, to a window as to the plane.
        if constant.ndim >= -axis and constant.shape[axis] == size > 1:
            constant = constant.narrow(axis, span.start, len(span))
    return constant
