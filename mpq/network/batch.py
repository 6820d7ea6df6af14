"""Inputs of one forward pass, and what can be done with them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from mpq.errors import DataError
from mpq.network.input_parts import Part, is_images, length_of
from mpq.network.objects import Objects, images_with_objects, objects_of

IGNORED_TARGET = -100
"""Targets of this value are not counted, as in torch's cross entropy."""


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of one forward pass, and targets if there are any.

    Inputs may be nested: ``(x, (h, c))``. The first tensor's first axis is the batch; a list of
    images is a batch of as many.

    Args:
        args: Positional inputs.
        kwargs: Inputs by name.
        targets: Class indices, int64 ``[N]`` or ``[N, P]`` for ``P`` positions, or ``None``.
        is_whole: Whether all rows together are one example, as the nodes of a graph are; then
            targets are ``[1, N * P]``.
        axes: Of every part, in order, along which axis examples lie; ``None``: all share it, as a
            causal mask. Without it, examples lie along a first axis that is as long as the batch.
        start: Index of the first example among all that a ``Calibration`` reads its own from.
        objects: What is to be found in each image, as detectors are trained with; no class of a
            position, so that no accuracy is said of it.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    targets: Tensor | None = None
    is_whole: bool = False
    axes: tuple[int | None, ...] | None = None
    start: int = 0
    objects: Objects | None = None

    @classmethod
    def of(cls, data: Any) -> Self:
        """A batch from what a data function yields.

        ``x``; ``(x,)``; ``(x, targets)``, where ``x`` is a tensor, a tuple or a dict of inputs; a
        tuple of three or more positional inputs; a dict of inputs by name, whose ``labels`` are
        the targets (as Hugging Face has them; labels that repeat ``input_ids`` are those of a
        causal language model, and are shifted by one). In the place of targets, what detectors
        are trained with: a list with a dict for each image, or a dict of tensors, an entry for
        each. A list of images without that is written ``((images,), None)``.

        Raises:
            DataError: If the data is none of these.
        """
        if isinstance(data, cls):
            return data
        targets: Any = None
        # A list is what a `DataLoader` makes of a tuple.
        if isinstance(data, tuple | list) and len(data) == 2:
            data, targets = data
        data = images_with_objects(data, targets)
        if isinstance(data, Mapping):
            kwargs = dict(data)
            # Always taken out: given labels, a model of Hugging Face computes a loss as well.
            labels = kwargs.pop("labels", None)
            if targets is None and isinstance(labels, Tensor):
                labels = _aligned(labels, kwargs.get("input_ids"))
            targets, args = labels if targets is None else targets, ()
        else:
            args, kwargs = tuple(data) if isinstance(data, tuple | list) else (data,), {}
        objects = objects_of(targets)
        batch = cls(args, kwargs, targets if objects is None else None, objects=objects)
        batch._check()
        return batch

    @property
    def parts(self) -> list[Part]:
        """Tensors and lists of images among the inputs, in order."""
        leaves = tree_leaves((self.args, dict(self.kwargs)), is_leaf=is_images)
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) or is_images(leaf)]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the inputs, in order."""
        leaves = tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def _check(self) -> None:
        parts = self.parts
        if not parts:
            kinds = [type(v).__name__ for v in (*self.args, *self.kwargs.values())]
            raise DataError(f"a batch needs at least one tensor as input; got {kinds or 'nothing'}")
        first = parts[0]
        if isinstance(first, Tensor) and (first.ndim == 0 or len(first) == 0):
            raise DataError(f"a batch has no example: its first input is {tuple(first.shape)}")
        # Refused here, as a nan in the output would be blamed on the model.
        for index, tensor in enumerate(self.tensors):
            # A mask hides by minus infinity; examples, which come first, have none.
            is_mask = index > 0 and tensor.is_floating_point()
            wrong = tensor.isnan() | tensor.isposinf() if is_mask else ~tensor.isfinite()
            if tensor.is_floating_point() and bool(wrong.any()):
                raise DataError("an input has a value that is NaN or infinite")
        if self.objects is not None and len(self.objects) != self.size:
            raise DataError(
                f"a detector's targets are a dict for each image; got {len(self.objects)} for "
                f"{self.size} examples"
            )
        if self.targets is None:
            return
        if not isinstance(self.targets, Tensor):
            raise DataError(
                f"a pair is (inputs, targets), and targets are a tensor; got "
                f"{type(self.targets).__name__} (for two inputs, yield ((first, second), None))"
            )
        if self.targets.shape[:1] != (self.size,):
            shape = tuple(self.targets.shape)
            raise DataError(f"targets of shape {shape} for {self.size} examples")

    @property
    def size(self) -> int:
        """Examples in the batch."""
        if self.is_whole:
            return 1
        first = self.parts[0]
        found = length_of(first, self.first_axis)
        return len(first) if found is None else found

    @property
    def first_axis(self) -> int:
        """Where the first input has its examples: second in a sequence-first network."""
        return (self.axes[0] or 0) if self.axes else 0

    def whole(self) -> "Batch":
        """All rows as one example."""
        if self.is_whole:
            return self
        targets = None if self.targets is None else self.targets.reshape(1, -1)
        return replace(self, targets=targets, is_whole=True)

    def as_examples(self, outputs: Tensor) -> Tensor:
        """``[N, P, C]`` of as many examples as the batch has, if that can be.

        Rows that are several times as many are positions of theirs, as of flattened tokens
        ``[N * T, C]`` or the frames of videos. Of a batch that is one example all rows are.
        """
        size = self.size
        if len(outputs) == size or not size or len(outputs) % size:
            return outputs
        return outputs.reshape(size, -1, *outputs.shape[2:])

    def with_first_row_replaced(self) -> "Batch | None":
        """The first input's first row is another one of its rows; ``None`` where all are alike."""
        first = self.parts[0]
        rows = first.movedim(self.first_axis, 0) if isinstance(first, Tensor) else first
        others = (row for row in rows[1:] if not torch.equal(row, rows[0]))
        other = next(others, None)
        if other is None:
            return None
        changed: Part
        if isinstance(first, Tensor):
            changed = first.clone()
            changed.select(self.first_axis, 0).copy_(other)
        else:
            changed = [other, *first[1:]]
        return self._with_parts(lambda part: changed if part is first else part)

    def checksum(self) -> float:
        """A number that differs where the inputs do, or come in another order."""
        total = 0.0
        for tensor in self.tensors:
            # Minus infinity would be the sum, whatever the rest is.
            flat = tensor.detach().flatten().double().nan_to_num(neginf=-1.0)
            # Weights that rise along the tensor, as a plain sum is the same in any order.
            total += float(flat @ torch.linspace(1, 2, flat.numel()).to(flat))
        return total

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with every tensor changed."""

        def apply(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        args, kwargs = tree_map(apply, (self.args, dict(self.kwargs)))
        return replace(self, args=args, kwargs=kwargs, targets=apply(self.targets))

    def _with_parts(self, change: Callable[[Part], Part]) -> "Batch":
        def apply(leaf: Any) -> Any:
            return change(leaf) if isinstance(leaf, Tensor) or is_images(leaf) else leaf

        args, kwargs = tree_map(apply, (self.args, dict(self.kwargs)), is_leaf=is_images)
        return replace(self, args=args, kwargs=kwargs)

    def _by_example(
        self, change: Callable[[Tensor, int], Tensor], change_list: Callable[[Any], Any]
    ) -> "Batch":
        """Tensors changed along the axis of the examples, lists of them as lists."""
        axes = iter(self._known_axes())

        def apply(part: Part) -> Part:
            axis = next(axes)
            if axis is None:
                return part
            found: Part = change(part, axis) if isinstance(part, Tensor) else change_list(part)
            return found

        targets = None if self.targets is None else change(self.targets, 0)
        objects = None if self.objects is None else change_list(self.objects)
        return replace(self._with_parts(apply), targets=targets, objects=objects)

    def _known_axes(self) -> list[int | None]:
        parts, size = self.parts, self.size
        axes = self.axes if self.axes and len(self.axes) == len(parts) else (0,) * len(parts)
        # What has another length is shared by all examples, such as a causal mask.
        return [
            axis if axis is not None and length_of(part, axis) == size else None
            for part, axis in zip(parts, axes, strict=True)
        ]

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def slice(self, start: int, stop: int) -> "Batch":
        """Examples ``start`` to ``stop`` of the batch."""
        # One example cannot be cut.
        if self.is_whole:
            return self
        cut = self._by_example(
            lambda t, axis: t.narrow(axis, start, min(stop, t.shape[axis]) - start),
            lambda images: images[start:stop],
        )
        return replace(cut, start=self.start + start)

    def take(self, places: Sequence[int]) -> "Batch":
        """Some examples of the batch, as a batch that begins where the first of them does."""
        if self.is_whole or len(places) == self.size:
            return self
        index = torch.tensor(places)
        return self._by_example(
            lambda t, axis: t.index_select(axis, index.to(t.device)),
            lambda images: type(images)(images[place] for place in places),
        )

    def pieces(self, at_once: int | None) -> Iterator["Batch"]:
        """The examples so many at a time; all at once where that is ``None``."""
        size = self.size
        if at_once is None or size <= at_once:
            yield self
        else:
            starts = range(0, size, at_once)
            yield from (self.slice(start, min(start + at_once, size)) for start in starts)

    def repeated(self, copies: int) -> "Batch":
        """The examples so many times, one after the other."""
        return self._by_example(
            lambda t, axis: torch.cat([t] * copies, axis), lambda images: images * copies
        )


def _aligned(labels: Tensor, input_ids: Tensor | None) -> Tensor:
    """Labels at the position that predicts them."""
    if input_ids is None or labels.shape != input_ids.shape:
        return labels
    # Labels per token (of named entities, say) have the ids' shape and are not shifted.
    if not bool(((labels == input_ids) | (labels == IGNORED_TARGET)).all()):
        return labels
    end = torch.full_like(labels[:, :1], IGNORED_TARGET)
    return torch.cat([labels[:, 1:], end], dim=1)
