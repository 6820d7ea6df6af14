"""What among a network's inputs holds examples: tensors, and lists of images."""

from typing import Any, TypeAlias

from torch import Tensor

Part: TypeAlias = Tensor | list[Tensor]
"""A tensor among the inputs, or a list of images ``[C, H, W]``, each of which is an example."""


def is_images(value: Any) -> bool:
    """Whether a value is a list of images, as detectors take them: each is an example."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(x, Tensor) and x.ndim == 3 and x.is_floating_point() for x in value)
    )


def length_of(part: Part, axis: int) -> int | None:
    """How long a part is along an axis, if it has that axis."""
    if isinstance(part, Tensor):
        return part.shape[axis] if axis < part.ndim else None
    return len(part) if axis == 0 else None
