"""Products of gradients and changes of a weight, channel by channel."""

from typing import final

import torch
from torch import Tensor


@final
class ChannelProducts:
    r"""Inner products ``P`` of a batch's gradients with what ``F`` formats do to one weight.

    .. math:: P_{s o f} = \sum_{n \in s} \langle g_{n o}, Q_f(W)_o - W_o \rangle

    for ``S`` groups of examples and ``O`` output channels. Only sums are kept.

    Args:
        num_groups: Groups of examples, ``S``.
        num_channels: Output channels, ``O``.
        num_formats: Formats, ``F``.
        device: Of the weight.
    """

    def __init__(
        self, num_groups: int, num_channels: int, num_formats: int, device: torch.device
    ) -> None:
        self.whole = torch.zeros(num_groups, num_formats, device=device, dtype=torch.float32)
        """``[S, F]`` summed over channels."""
        self.squares = torch.zeros(num_channels, num_formats, device=device, dtype=torch.float32)
        """``[O, F]`` squared, and summed over groups."""
        self.fourths = torch.zeros(num_channels, num_formats, device=device, dtype=torch.float64)
        """``[O, F]`` squares squared, and summed over groups."""

    def add(self, some: slice, products: Tensor) -> None:
        """``[S, r, F]`` of some channels, with all calls of the layer in them."""
        self.whole += products.sum(dim=1)
        squares = products.square()
        self.squares[some] += squares.sum(dim=0)
        self.fourths[some] += squares.double().square_().sum(dim=0)

    def add_rows(self, owners: Tensor, channels: Tensor, products: Tensor) -> None:
        """``[M, F]`` of single channels ``[M]``, ``owners [M]`` the group that each is of."""
        self.whole.index_add_(0, owners, products)
        squares = products.square()
        self.squares.index_add_(0, channels, squares)
        self.fourths.index_add_(0, channels, squares.double().square_())

    def add_batch(self, channels: slice | Tensor, products: Tensor) -> None:
        """``[r, F]`` of some channels, of which the batch as a whole is known alone.

        Signs of different examples are independent, so that the square of the sum over the batch
        is, in the mean, the sum of the squares: spread evenly over groups, it counts as such.
        """
        self.whole += products.sum(dim=0) / len(self.whole) ** 0.5
        squares = products.square()
        for sums, powers in ((self.squares, squares), (self.fourths, squares.double().square_())):
            if isinstance(channels, slice):
                sums[channels] += powers
            else:
                sums.index_add_(0, channels, powers)
