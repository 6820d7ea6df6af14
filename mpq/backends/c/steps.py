"""A network as a microcontroller runs it: one step after the other, on tensors of one example."""

from dataclasses import dataclass, field
from math import inf
from typing import Final, final

WORDS: Final = {"add": "addition", "max": "maximum"}
"""Kinds of steps that are called otherwise by people."""
Shape = tuple[int, int, int]
"""Channels, height and width; a vector is ``(K, 1, 1)``, a line ``(C, 1, L)``."""


@final
@dataclass(frozen=True)
class Window:
    """How a step walks over its input, as height and width.

    Args:
        kernel: Pixels of one sum or maximum.
        stride: Pixels from one to the next.
        padding: Rows above and columns to the left that are zero; negative: that are left out.
        dilation: Pixels from one of a kernel to the next.
        groups: Of a convolution.
        channels_before: Output channels before the first one of the input, which are zero.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    channels_before: int = 0


@final
@dataclass(frozen=True)
class Step:
    """One kernel's work.

    Args:
        kind: ``layer``, ``add``, ``mean``, ``max`` or ``move`` (copies, cuts, pads).
        reads: Names of the tensors it reads; what a layer adds to its sums comes second.
        makes: Name of the tensor that it makes.
        shapes: Shape of the first tensor that it reads, and of the one that it makes.
        window: How it walks.
        layer: Name of the layer.
        low: Smallest number that it makes (0 of a ReLU).
        high: Largest number that it makes (6 of a ReLU6).
    """

    kind: str
    reads: tuple[str, ...]
    makes: str
    shapes: tuple[Shape, Shape]
    window: Window = field(default_factory=Window)
    layer: str | None = None
    low: float = -inf
    high: float = inf

    @property
    def is_in_place(self) -> bool:
        """Whether every number that it makes needs its own numbers only."""
        same = self.shapes[0] == self.shapes[1] and self.window == Window()
        return self.kind in ("add", "move") and same

    @property
    def keeps_numbers(self) -> bool:
        """Whether it makes no number that it has not read: what is stored can be so before it."""
        return self.kind in ("max", "move")


@final
@dataclass(frozen=True)
class Steps:
    """All steps of a network.

    Args:
        steps: In the order of execution.
        reads: Name of the tensor that the network reads.
        elements: Name of a tensor to its numbers, of one example.
        output_shape: Of the network's output, without the batch axis.
    """

    steps: tuple[Step, ...]
    reads: str
    elements: dict[str, int]
    output_shape: tuple[int, ...]

    @property
    def makes(self) -> str:
        """Name of the network's output."""
        return self.steps[-1].makes

    @property
    def makers(self) -> dict[str, str]:
        """Name of a tensor to what makes it, for people: a layer, or what comes behind one."""
        found, last = {self.reads: "the input"}, "the input"
        for step in self.steps:
            if step.layer is not None:
                last = found[step.makes] = f"layer {step.layer!r}"
            else:
                found[step.makes] = f"the {WORDS.get(step.kind, step.kind)} after {last}"
        return found

    def readers(self, name: str) -> list[Step]:
        """Steps that read a tensor."""
        return [step for step in self.steps if name in step.reads]
