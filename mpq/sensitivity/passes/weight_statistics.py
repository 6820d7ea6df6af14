"""What formulas read of a layer: its weight, gradient, input and curvature, weight by weight."""

from collections.abc import Collection

import torch
from torch import Tensor

from mpq.network.modules import weight_of
from mpq.network.weight_layout import layout_of
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.example_gradients import ExampleGradients, sum_of_squares
from mpq.sensitivity.passes.input_columns import Lattice, input_columns
from mpq.sensitivity.passes.labels import labelled_passes, loss_gradient
from mpq.sensitivity.passes.operator_calls import operator_call


def weight_statistics(
    on: Estimation, inputs: Collection[str], labels: str, seed: int
) -> dict[str, dict[str, Tensor]]:
    """Layer name to what ``mpq.sensitivity.formula.INPUTS`` names, ``[O, K]`` in float32 each.

    All of them come from one forward and one backward pass. Where what a weight meets is not known
    (an embedding, a forward of its own that does more than torch's operator, a layer that nothing
    reaches), ``a`` is 1.

    Args:
        on: The network and the examples.
        inputs: Which are wanted; the weights alone need no example.
        labels: Whose labels gradients are taken for; see ``loss_gradient``.
        seed: Of drawn labels.

    Raises:
        DataError: If targets are wanted and there are none.
    """
    sums, examples = _Sums(on, inputs), 0
    if set(inputs) - {"w"}:
        for batch in labelled_passes(on, sums, loss_gradient, labels, seed):
            sums.end()
            examples += batch.size
    return {name: sums.of(name, examples) for name in on.names}


class _Sums:
    """Sums over examples, while backward passes run, on each layer's own device."""

    reads_inputs = False

    def __init__(self, on: Estimation, inputs: Collection[str]) -> None:
        self._on, self._inputs = on, set(inputs)
        self._gradients: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._met: dict[str, tuple[Tensor, int]] = {}
        self._by_example = ExampleGradients(self._square)

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``; not called."""

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        if "g" in self._inputs:
            whole = tap.weight_gradients(x, g.float()).whole()[0]
            self._gradients[tap.name] = self._gradients.get(tap.name, 0) + whole
        if "h" in self._inputs:
            self._by_example.read(tap, x, g)
        if "a" in self._inputs and tap.layer.kind != "embedding":
            self._meet(tap, x, g)

    def end(self) -> None:
        """Ends a batch."""
        self._by_example.flush()

    def _square(self, tap: Tap, examples: slice, gradients: Tensor) -> None:
        found = sum_of_squares(examples, gradients)
        self._squares[tap.name] = self._squares.get(tap.name, 0) + found

    def _meet(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        call = operator_call(tap, x)
        if call is None:
            return
        where, read = call
        for _, columns in input_columns(where.layer_module, read, g, Lattice()):
            found, count = self._met.get(tap.name, (0, 0))
            squares = columns.square().sum(dim=-1)  # [G, K]
            self._met[tap.name] = (found + squares, count + columns.shape[-1])

    def of(self, name: str, examples: int) -> dict[str, Tensor]:
        """All that is wanted of one layer."""
        layer_module = self._on.network.layer_module(name)
        weight, layout = weight_of(layer_module).detach(), layout_of(layer_module)
        rows = layout.to_rows(weight).float()
        found = {"w": rows.cpu()}
        for letter, sums in (("g", self._gradients), ("h", self._squares)):
            if letter in self._inputs:
                whole = sums[name] / examples if name in sums else torch.zeros_like(weight).float()
                found[letter] = layout.to_rows(whole.reshape(weight.shape)).cpu()
        if "a" in self._inputs:
            found["a"] = self._roots(name, rows).cpu()
        return found

    def _roots(self, name: str, rows: Tensor) -> Tensor:
        if name not in self._met:
            return torch.ones_like(rows)
        squares, count = self._met[name]
        return (squares / count).sqrt().repeat_interleave(len(rows) // len(squares), dim=0)
