"""Weights as rows: one row per output channel, whatever the layer's own layout."""

from dataclasses import dataclass
from typing import Final, Protocol, final

from torch import Tensor, nn


class RowLayout(Protocol):
    """How a weight is read as ``[O, K]``: ``O`` output channels of ``K`` weights each."""

    def to_rows(self, weight: Tensor) -> Tensor:
        """``[O, K]`` from the stored shape."""

    def from_rows(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The stored shape from ``[O, K]``."""


@final
@dataclass(frozen=True)
class ChannelFirst:
    """Stored as ``[O, ...]``: Linear, convolutions, Embedding (a row per token)."""

    def to_rows(self, weight: Tensor) -> Tensor:
        """See ``RowLayout``."""
        return weight.flatten(1)

    def from_rows(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """See ``RowLayout``."""
        return rows.reshape(shape)


@final
@dataclass(frozen=True)
class ChannelLast:
    """Stored as ``[I, O]``: Hugging Face's ``Conv1D``."""

    def to_rows(self, weight: Tensor) -> Tensor:
        """See ``RowLayout``."""
        return weight.t()

    def from_rows(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """See ``RowLayout``."""
        return rows.t().reshape(shape)


@final
@dataclass(frozen=True)
class Transposed:
    """Stored as ``[I, O / groups, ...]``: transposed convolutions."""

    groups: int

    def to_rows(self, weight: Tensor) -> Tensor:
        """See ``RowLayout``."""
        # [groups, I / groups, O / groups, ...]
        # Inputs of all groups share the first axis, outputs of each group start again at 0.
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
        return grouped.transpose(1, 2).flatten(0, 1).flatten(1)

    def from_rows(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """See ``RowLayout``."""
        inputs, outputs, *kernel = shape
        grouped = rows.reshape(self.groups, outputs, inputs // self.groups, *kernel)
        return grouped.transpose(1, 2).reshape(shape)


CHANNEL_FIRST: Final = ChannelFirst()


def is_hugging_face_conv1d(module: nn.Module) -> bool:
    """Whether this is the transposed Linear of GPT-2; recognised without importing transformers."""
    return any(
        # Over the whole MRO, so that a subclass counts as `isinstance` would have it.
        (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")
        for kind in type(module).__mro__
    )


def layout_of(module: nn.Module) -> RowLayout:
    """How this module's weight becomes rows."""
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return Transposed(module.groups)
    return ChannelLast() if is_hugging_face_conv1d(module) else CHANNEL_FIRST
