"""The shape of one call of a layer: what its time depends on besides format and batch size."""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Final, Self, final

from mpq.errors import InputError, UnknownNameError
from mpq.network.layer import Layer

SPATIAL_AXES: Final = {
    "linear": 0,
    "embedding": 0,
    **{f"{conv}{d}d": d for conv in ("conv", "conv_transpose") for d in (1, 2, 3)},
}
"""Kinds of layers, and how many axes their kernel has."""


@final
@dataclass(frozen=True)
class Shape:
    """One call of a layer for one example.

    What a linear layer reads is taken as ``[tokens, features]``, or ``[features]`` for a single
    token, and what an embedding reads as ``[tokens]``: further axes change no arithmetic.

    Args:
        kind: Kind of the layer, as in ``Layer``.
        weight_shape: Shape of the weight, as torch stores it.
        input_shape: Shape of what one example reads, without the batch axis.
        output_shape: Shape of what one example writes, without the batch axis.
        groups: Groups of a convolution; 1 elsewhere.

    Raises:
        UnknownNameError: If there is no such kind.
        InputError: If the shapes do not fit each other.
    """

    kind: str
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    groups: int = 1

    def __post_init__(self) -> None:
        if self.kind not in SPATIAL_AXES:
            raise UnknownNameError("kind of layer", self.kind, SPATIAL_AXES)
        sizes = (*self.weight_shape, *self.input_shape, *self.output_shape, self.groups)
        # First: what follows divides by these numbers.
        if not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise InputError(f"{self}: sizes and groups are whole numbers of at least 1")
        if len(self.weight_shape) != 2 + SPATIAL_AXES[self.kind]:
            raise InputError(
                f"{self}: the weight of a {self.kind} has {2 + SPATIAL_AXES[self.kind]} axes"
            )
        if self.kind in ("linear", "embedding"):
            self._flatten()
        # Spatial sizes are not checked: they depend on stride and padding, which are not stored.
        elif (self.input_shape[:1], self.output_shape[:1]) != self._channels() or not (
            len(self.input_shape) == len(self.output_shape) == 1 + SPATIAL_AXES[self.kind]
        ):
            (read,), (written,) = self._channels()
            raise InputError(
                f"{self}: expected {read} channels and {SPATIAL_AXES[self.kind]} further axes in, "
                f"{written} channels and as many axes out, by weight and groups ({self.groups})"
            )

    def _channels(self) -> tuple[tuple[int], tuple[int]]:
        # torch stores `[out, in / groups, ...]`; of a transposed convolution with both exchanged.
        first, second = self.weight_shape[0], self.weight_shape[1] * self.groups
        return ((first,), (second,)) if "transpose" in self.kind else ((second,), (first,))

    def _flatten(self) -> None:
        is_linear = self.kind == "linear"
        rows, columns = self.weight_shape
        read, written = ((columns,), (rows,)) if is_linear else ((), (columns,))
        tokens = prod(self.input_shape) // prod(read)
        if self.groups != 1 or self.input_shape[len(self.input_shape) - len(read) :] != read:
            raise InputError(f"{self}: expected {prod(read)} features in, and 1 group")
        if self.output_shape[-1:] != written or prod(self.output_shape) != tokens * prod(written):
            raise InputError(f"{self}: expected {tokens} x {prod(written)} numbers out")
        # A single token has no axis, so that a vector and a prompt of one are the same shape.
        axes = (tokens,) if tokens > 1 else ()
        # The way to write a field of a frozen dataclass while it is made.
        object.__setattr__(self, "input_shape", axes + read)
        object.__setattr__(self, "output_shape", axes + written)

    @classmethod
    def of(cls, layer: Layer) -> Self:
        """Of one of a layer's calls.

        A linear layer that reads a flattened batch is counted at the tokens of one example.

        Raises:
            InputError: If its calls are of unlike shapes, or it reads several examples as one.
        """
        read, written = layer.input_shape, layer.output_shape
        if layer.kind in ("linear", "embedding"):
            features = layer.weight_shape[1] if layer.kind == "linear" else 1
            # By the elements, which are per example: the first call's shape may have flattened the
            # batch into its tokens.
            tokens = layer.input_elements // (layer.calls * features)
            read = (tokens, features) if layer.kind == "linear" else (tokens,)
            written = (tokens, layer.output_shape[-1])
        # Calls of unlike shapes: their mean shape is no shape that anybody measured.
        if prod(read) * layer.calls != layer.input_elements:
            raise InputError(
                f"layer {layer.name!r} reads {layer.input_elements} numbers per example in "
                f"{layer.calls} calls, the first {spell(layer.input_shape)}: a measured table "
                "prices calls of one shape, a whole one per example; leave the layer out (exclude)"
            )
        return cls(layer.kind, layer.weight_shape, read, written, layer.groups)

    @property
    def features(self) -> tuple[int, int, int]:
        """MACs, elements of the weight, and elements read and written, of one example."""
        return self.macs, prod(self.weight_shape), prod(self.input_shape) + prod(self.output_shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call for one example."""
        if self.kind == "embedding":
            return 0
        # Each input of a transposed convolution meets the whole kernel, each output of a plain one.
        elements = self.input_shape if "transpose" in self.kind else self.output_shape
        return prod(elements) * prod(self.weight_shape[1:])

    @cached_property
    def family(self) -> str:
        """Kind, kernel, and whether it is depthwise or grouped: what shares one rule.

        >>> Shape("conv2d", (8, 1, 3, 3), (8, 4, 4), (8, 4, 4), groups=8).family
        'depthwise conv2d 3x3'
        """
        grouping = ""
        if self.groups > 1:
            # Apart from grouped ones: a filter per channel has far fewer MACs per number read.
            grouping = "depthwise " if self.groups == self.input_shape[0] else "grouped "
        kernel = self.weight_shape[2:]
        return f"{grouping}{self.kind}{' ' if kernel else ''}{spell(kernel) if kernel else ''}"

    def __str__(self) -> str:
        shapes = (self.weight_shape, self.input_shape, self.output_shape)
        weight, read, written = map(spell, shapes)
        groups = f" in {self.groups} groups" if self.groups != 1 else ""
        return f"{self.kind} {weight}{groups}, input {read}, output {written}"


def spell(shape: tuple[int, ...]) -> str:
    """A shape in one word.

    >>> spell((64, 3, 7, 7)), spell(())
    ('64x3x7x7', '()')
    """
    return "x".join(map(str, shape)) or "()"


def parse_shape(text: str) -> tuple[int, ...]:
    """Inverse of ``spell``.

    Raises:
        InputError: If the text is no shape.
    """
    sizes = [] if text.strip() == "()" else text.strip().split("x")
    # `isdigit` alone is true of superscripts, which `int` refuses in words of its own.
    if not all(size.isascii() and size.isdigit() for size in sizes):
        raise InputError(f"{text!r} is not a shape: write sizes with an x between, as 64x3x7x7")
    return tuple(map(int, sizes))
