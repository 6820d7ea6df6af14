"""Gradients of every layer's weight for every example, whole: summed over the layer's calls."""

from collections.abc import Callable, Iterator
from math import sqrt
from typing import final

from torch import Tensor

from mpq.network.modules import weight_of
from mpq.sensitivity.passes.backward_pass import Tap

_WORK_ELEMENTS = 2**22
"""Numbers that one step over examples may spread out: their gradients, or what a convolution's
kernel meets."""


@final
class ExampleGradients:
    """Hands on what a backward pass reads (``GradientReader.read_output``), example by example.

    Gradients of a layer that is called once are handed on as they come, a few examples at a time.
    Those of a layer that is called several times are added up first, which takes ``N`` times the
    memory of its weight.

    Where examples share a tensor, or hold a varying share of it, only their sum is known. As if
    the examples' gradients were independent, each counts as the sum over the root of ``N``: then
    squares add up to what they would be in the mean.

    Args:
        use: Called with a layer, consecutive examples and their gradients ``[n, D]``, or
            ``[1, D]`` that stand for each of them.
    """

    def __init__(self, use: Callable[[Tap, slice, Tensor], None]) -> None:
        self._use = use
        self._open: dict[str, tuple[Tap, Tensor]] = {}

    def read(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """One call of a layer: its input, and the gradient of its output."""
        for examples, gradients in _steps(tap, x, g):
            # Users take squares or absolute values, which must be those of the sum over calls.
            if tap.layer.calls == 1:
                self._use(tap, examples, gradients)
            else:
                self._add(tap, examples, gradients)

    def _add(self, tap: Tap, examples: slice, gradients: Tensor) -> None:
        if tap.name not in self._open:
            zeros = gradients.new_zeros(tap.num_examples, gradients.shape[1])
            self._open[tap.name] = (tap, zeros)
        self._open[tap.name][1][examples] += gradients

    def flush(self) -> None:
        """Ends a batch: hands on what was added up."""
        for tap, gradients in self._open.values():
            self._use(tap, slice(0, tap.num_examples), gradients)
        self._open.clear()


def sum_of_squares(examples: slice, gradients: Tensor) -> Tensor:
    """``[D]`` over examples, of the gradients that ``ExampleGradients`` hands on."""
    # One row may stand for each of the examples.
    count = (examples.stop - examples.start) / len(gradients)
    found: Tensor = gradients.float().square().sum(dim=0) * count
    return found


def _steps(tap: Tap, x: Tensor, g: Tensor) -> Iterator[tuple[slice, Tensor]]:
    count, gradients = tap.num_examples, tap.weight_gradients(x, g.float())
    if not gradients.is_split:
        yield slice(0, count), gradients.whole() / sqrt(count)
        return
    # What one example's gradient spreads out.
    step = max(1, _WORK_ELEMENTS // max(gradients.spread, weight_of(tap.layer_module).numel()))
    for start in range(0, count, step):
        examples = slice(start, min(start + step, count))
        yield examples, gradients.rows(examples)
