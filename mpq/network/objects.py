"""What is to be found in images: a detector's targets, as data functions yield them."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from mpq.network.input_parts import is_images

Objects: TypeAlias = tuple[Mapping[str, Any], ...]
"""Of each image a dict, such as of ``boxes`` and ``labels``."""


def objects_of(targets: Any) -> Objects | None:
    """From a list or tuple of dicts, or a dict of tensors ``[N, ...]``, ``boxes`` among them.

    Returns:
        ``None`` where it is neither.
    """
    if isinstance(targets, Mapping):
        columns = list(targets.values())
        if "boxes" not in targets or not all(isinstance(x, Tensor) and x.ndim for x in columns):
            return None
        if len({len(x) for x in columns}) > 1:
            return None
        return tuple({k: x[i] for k, x in targets.items()} for i in range(len(columns[0])))
    is_list = isinstance(targets, tuple | list) and bool(targets)
    if not is_list or not all(isinstance(each, Mapping) for each in targets):
        return None
    return tuple(targets)


def images_with_objects(data: Any, targets: Any) -> Any:
    """The same inputs, of which a list or tuple of images that has objects is one input.

    A tuple is what ``zip`` makes of pairs of an image and its targets.
    """
    is_pair = isinstance(data, tuple | list) and objects_of(targets) is not None
    return (list(data),) if is_pair and is_images(list(data)) else data
