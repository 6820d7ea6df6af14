"""Layers whose channels may come in any order, as those that read them can follow."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.network.channel_readers import channel_readers
from mpq.network.examples import Calibration


class Net(nn.Module):
    """Two layers, and what is between them.

    Args:
        between: Is given the net and what the first layer makes.
    """

    def __init__(self, between: Callable[["Net", Tensor], Tensor], is_conv: bool = False) -> None:
        super().__init__()
        self.between, self.norm = between, nn.LayerNorm(6)
        make = (lambda a, b: nn.Conv1d(a, b, 3, padding=1)) if is_conv else nn.Linear
        self.a, self.b, self.c = make(6, 6), make(6, 6), make(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.a(x)))  # type: ignore[no-any-return]


def readers(net: nn.Module) -> dict[str, tuple[str, ...]]:
    torch.manual_seed(0)
    batch = Calibration.of([torch.randn(3, 6, 6)]).first()
    return channel_readers(net.eval(), batch, [n for n, _ in net.named_children() if n != "norm"])


@pytest.mark.parametrize("is_conv", [False, True])
@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: x,
        lambda net, x: F.gelu(x).mul(0.5) + 1,
        lambda net, x: F.relu_(x).clamp_min(0.1) * x.shape[0],
        lambda net, x: torch.tanh(F.dropout(x, 0.5, training=False)),
    ],
)
def test_functions_of_single_numbers(
    between: Callable[[Net, Tensor], Tensor], is_conv: bool
) -> None:
    """Whatever is done to each number alone."""
    assert readers(Net(between, is_conv)) == {"a": ("b",)}


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: net.norm(x),
        lambda net, x: x + net.c(x),
        lambda net, x: x * x.sigmoid(),
        lambda net, x: x.flip(-1),
        lambda net, x: x.transpose(1, 2),
        lambda net, x: x.softmax(-1),
        lambda net, x: x * torch.ones(6),
        lambda net, x: x[..., :6],
        lambda net, x: x.flatten(1).unflatten(1, x.shape[1:]),
    ],
)
def test_what_knows_channels_by_their_places(between: Callable[[Net, Tensor], Tensor]) -> None:
    """Norms, sums, products of two tensors, views, comparisons: the order stays."""
    assert "a" not in readers(Net(between))


def test_several_readers_and_calls() -> None:
    """All of them are named; one that reads something else as well ends it."""

    class Both(Net):
        def forward(self, x: Tensor) -> Tensor:
            made = self.a(x).relu()
            return self.b(made) + self.c(made)  # type: ignore[no-any-return]

    class Again(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) + self.b(x)  # type: ignore[no-any-return]

    class Mixed(Net):
        def forward(self, x: Tensor) -> Tensor:
            made = self.a(x)
            return self.b(made) + made  # type: ignore[no-any-return]

    assert readers(Both(lambda net, x: x)) == {"a": ("b", "c")}
    assert readers(Again(lambda net, x: x)) == {}
    assert readers(Mixed(lambda net, x: x)) == {}


def test_channels_of_a_convolution_that_a_linear_layer_does_not_read() -> None:
    """It reads the last axis, which is another one."""
    net = nn.Sequential(nn.Conv1d(6, 6, 1), nn.ReLU(), nn.Linear(6, 6))

    batch = Calibration.of([torch.randn(3, 6, 6)]).first()
    assert channel_readers(net.eval(), batch, ["0", "2"]) == {}
