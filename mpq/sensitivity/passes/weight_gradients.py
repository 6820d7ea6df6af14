"""Gradients of a layer's weight in one call: by formula where its forward is torch's own."""

import inspect
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from mpq.errors import GradientError
from mpq.network.modules import weight_of
from mpq.network.own_forward import Again, is_close
from mpq.sensitivity.passes.differentiation import translated
from mpq.sensitivity.passes.layer_response import widened
from mpq.sensitivity.passes.per_example import (
    by_example,
    summed_weight_gradients,
    weight_gradients,
)


class CallGradients(Protocol):
    """Gradients of a layer's weight in one call, in float32 or wider."""

    @property
    def layer_module(self) -> nn.Module:
        """The layer."""

    @property
    def is_split(self) -> bool:
        """Whether they are known for every example; if not, only ``whole`` is."""

    @property
    def spread(self) -> int:
        """Numbers that an example takes while they are computed, beside its gradient."""

    def rows(self, examples: slice | Tensor) -> Tensor:
        """``[n, D]`` of some examples."""

    def sums(self, examples: slice, group: int) -> Tensor:
        """``[ceil(n / group), D]``, added up over groups of consecutive examples."""

    def whole(self) -> Tensor:
        """``[1, D]``, added up over the batch."""


@final
@dataclass(frozen=True, eq=False)
class PlainCall:
    """Of a linear layer, convolution or embedding, by the formulas of ``per_example``.

    Args:
        layer_module: The layer.
        x: What it read.
        g: Gradient of its output, in the dtype of the result.
        inputs: ``x`` with the examples in the first axis; ``None``: cannot be split.
        outputs: ``g`` in the same way.
    """

    layer_module: nn.Module
    x: Tensor
    g: Tensor
    inputs: Tensor | None
    outputs: Tensor | None

    @property
    def is_split(self) -> bool:
        """See ``CallGradients``."""
        return self.inputs is not None and self.outputs is not None

    @property
    def spread(self) -> int:
        """See ``CallGradients``: what a convolution's kernel meets."""
        assert self.inputs is not None
        return self.inputs[0].numel() * prod(weight_of(self.layer_module).shape[2:])

    def part(self, examples: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and gradients of some examples."""
        assert self.inputs is not None
        assert self.outputs is not None
        return _taken(self.inputs, examples), _taken(self.outputs, examples)

    def rows(self, examples: slice | Tensor) -> Tensor:
        """See ``CallGradients``."""
        return weight_gradients(self.layer_module, *self.part(examples))

    def sums(self, examples: slice, group: int) -> Tensor:
        """See ``CallGradients``."""
        return summed_weight_gradients(self.layer_module, *self.part(examples), group)

    def whole(self) -> Tensor:
        """See ``CallGradients``."""
        return weight_gradients(self.layer_module, self.x[None], self.g[None])


@final
@dataclass(frozen=True, eq=False)
class OwnCall:
    """Of a layer with a forward of its own, which is differentiated with its weight as variable.

    Per example where the arguments can be cut into examples and every piece gives its part of the
    output; one example after the other, as nothing else is known of the forward.

    Args:
        name: What messages call the layer.
        again: The call.
        g: Gradient of its output, in the dtype of the result.
        num_examples: Examples in the batch, ``N``.
        batch_axis: Where they lie, see ``by_example``.
        is_shared: Whether ``g`` is ``[N, ...]``, the examples' gradients of one output.
    """

    name: str
    again: Again
    g: Tensor
    num_examples: int
    batch_axis: int
    is_shared: bool = False

    @property
    def layer_module(self) -> nn.Module:
        """See ``CallGradients``."""
        return self.again.layer_module

    @property
    def is_split(self) -> bool:
        """See ``CallGradients``."""
        return self.is_shared or self._cut is not None

    @property
    def spread(self) -> int:
        """See ``CallGradients``."""
        return 0

    def rows(self, examples: slice | Tensor) -> Tensor:
        """See ``CallGradients``."""
        chosen = examples if isinstance(examples, slice) else examples.cpu()
        index = torch.arange(self.num_examples)[chosen].tolist()
        if self.is_shared:
            y, weight = self._forward(self._wide)
            return torch.stack(
                [self._gradient(y, weight, self.g[i].reshape(y.shape)) for i in index]
            )
        return torch.stack([self._of(slice(i, i + 1)) for i in index])

    def sums(self, examples: slice, group: int) -> Tensor:
        """See ``CallGradients``."""
        if group == 1 or self.is_shared:
            return torch.stack([part.sum(dim=0) for part in self.rows(examples).split(group)])
        first, last, _ = examples.indices(self.num_examples)
        starts = range(first, last, group)
        return torch.stack([self._of(slice(i, min(i + group, last))) for i in starts])

    def whole(self) -> Tensor:
        """See ``CallGradients``."""
        y, weight = self._forward(self._wide)
        g = self.g.sum(dim=0).reshape(y.shape) if self.is_shared else self.g
        return self._gradient(y, weight, g)[None]

    def _of(self, examples: slice) -> Tensor:
        """``[D]``, added up over consecutive examples."""
        assert self._cut is not None
        y, weight = self._forward(self._cut.piece(examples))
        return self._gradient(y, weight, self._cut.part(self.g, examples))

    def _forward(self, again: Again) -> tuple[Tensor, Tensor]:
        weight = widened(weight_of(self.layer_module)).requires_grad_()
        with translated(), torch.enable_grad(), WholeGradients():
            y = again.output({"weight": weight}, widened)
        if not y.requires_grad:
            raise GradientError(
                f"the forward of layer {self.name!r} hides its weight from gradients (no_grad, "
                "detach or numpy within)"
            )
        return y, weight

    def _gradient(self, y: Tensor, weight: Tensor, g: Tensor) -> Tensor:
        with translated():
            (found,) = torch.autograd.grad(
                y, weight, g.to(y.dtype), retain_graph=True, materialize_grads=True
            )
        return found.flatten().to(self.g.dtype)

    @cached_property
    def _wide(self) -> Again:
        args, kwargs = tree_map(_wide, (self.again.args, dict(self.again.kwargs)))
        return replace(self.again, args=args, kwargs=kwargs)

    @cached_property
    def _cut(self) -> "Cut | None":
        with torch.no_grad():
            y = self._wide.output(None, widened)
            cuts = (
                Cut(self._wide, self.num_examples, self.batch_axis, frozenset(leaves))
                for leaves in _candidates(self._wide, self.num_examples, self.batch_axis)
            )
            return next((cut for cut in cuts if cut.gives(y)), None)


@final
@dataclass(frozen=True, eq=False)
class Cut:
    """A call in pieces, each with some of the examples.

    Args:
        again: The call.
        num_examples: Examples in the batch, ``N``.
        batch_axis: Where they lie, see ``by_example``.
        leaves: Which of the arguments have examples; all others go to every piece.
    """

    again: Again
    num_examples: int
    batch_axis: int
    leaves: frozenset[int]

    def piece(self, examples: slice) -> Again:
        """The call with some of the examples."""
        values, spec = tree_flatten((self.again.args, dict(self.again.kwargs)))
        cut = [self.part(v, examples) if i in self.leaves else v for i, v in enumerate(values)]
        args, kwargs = tree_unflatten(cut, spec)
        return replace(self.again, args=args, kwargs=kwargs)

    def part(self, tensor: Tensor, examples: slice) -> Tensor:
        """Some examples of an argument or of the output, in its own layout."""
        if self.batch_axis == 1 and tensor.ndim > 1 and tensor.shape[1] == self.num_examples:
            return tensor[:, examples]
        rows = len(tensor) // self.num_examples
        return tensor[examples.start * rows : examples.stop * rows]

    def gives(self, output: Tensor) -> bool:
        """Whether every single example gives its part of the output."""
        if by_example(output, self.num_examples, self.batch_axis) is None:
            return False
        singles = (slice(i, i + 1) for i in range(self.num_examples))
        try:
            return all(
                is_close(self.part(output, one), self.piece(one).output(None, widened))
                for one in singles
            )
        except torch.OutOfMemoryError:
            raise
        # What torch says of shapes that do not fit: then the layer takes whole batches only.
        except (RuntimeError, ValueError, IndexError):
            return False


class WholeGradients(TorchFunctionMode):
    """Within this block a table's lookup has the gradient of all its rows, each once per use."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.embedding:
            return func(*args, **(kwargs or {}))
        given = inspect.signature(func).bind(*args, **(kwargs or {})).arguments
        # For training, torch leaves out the row of padding or divides by frequencies; a rounded
        # row is read like any other.
        plain = {"padding_idx": None, "scale_grad_by_freq": False, "sparse": False}
        return func(**{**given, **plain})


def _candidates(again: Again, num_examples: int, batch_axis: int) -> list[list[int]]:
    """Which arguments may have the examples: all that could be cut, or the first of them alone."""
    values, _ = tree_flatten((again.args, dict(again.kwargs)))
    fitting = [
        i
        for i, v in enumerate(values)
        if isinstance(v, Tensor) and v.ndim and by_example(v, num_examples, batch_axis) is not None
    ]
    return [fitting, fitting[:1]] if len(fitting) > 1 else [fitting] if fitting else []


def _wide(value: Any) -> Any:
    return widened(value) if isinstance(value, Tensor) else value


def _taken(tensor: Tensor, examples: slice | Tensor) -> Tensor:
    """Rows by their numbers; a view if they follow each other."""
    if isinstance(examples, slice):
        return tensor[examples]
    first, last = int(examples[0]), int(examples[-1])
    if last - first + 1 == len(examples):
        return tensor[first : last + 1]
    return tensor[examples.to(tensor.device)]
