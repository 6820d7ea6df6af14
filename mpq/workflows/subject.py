"""What was searched: the network's class, and how many examples of what shape."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self, final

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mpq.network.batch import Batch
from mpq.network.examples import Calibration
from mpq.network.input_parts import Part, is_images
from mpq.network.wrappers import unwrapped

_MOST_INPUTS: Final = 8
"""Of a batch that are told; the rest is counted."""


@final
@dataclass(frozen=True)
class Subject:
    """A network and its examples, as far as a result names them.

    Args:
        network: Class of the network, without what is wrapped around it.
        num_calibration: Examples that ranges, codes and the estimate were found with.
        is_split: Whether held-out examples are a share of the data that was given for calibration.
        batch: Inputs of the first calibration batch: ``float32 [64, 3, 32, 32]``.
    """

    network: str
    num_calibration: int
    is_split: bool
    batch: str

    @classmethod
    def of(cls, model: nn.Module, calibration: Calibration, is_split: bool) -> Self:
        """Of a model as it was given, and the examples that it was calibrated on."""
        name, first = type(unwrapped(model)).__qualname__, calibration.uncut.first()
        return cls(name, calibration.num_examples, is_split, inputs_of(first))


def inputs_of(batch: Batch) -> str:
    """The type and shape of every input, by its name where it has one.

    >>> import torch
    >>> inputs_of(Batch.of({"ids": torch.zeros(2, 7, dtype=torch.int64)}))
    'ids: int64 [2, 7]'
    """
    found = list(_inputs(batch))
    more = [f"{len(found) - _MOST_INPUTS} more"] if len(found) > _MOST_INPUTS else []
    return ", ".join(found[:_MOST_INPUTS] + more)


def _inputs(batch: Batch) -> Iterator[str]:
    yield from map(_shape, _parts(batch.args))
    for name, value in batch.kwargs.items():
        for part in _parts(value):
            yield f"{name}: {_shape(part)}"


def _parts(value: object) -> list[Part]:
    leaves = tree_leaves(value, is_leaf=is_images)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) or is_images(leaf)]


def _shape(part: Part) -> str:
    if isinstance(part, Tensor):
        return f"{str(part.dtype).removeprefix('torch.')} {list(part.shape)}"
    return f"{len(part)} images"
