"""What forwards of their own hand on to torch's operators."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.network.inner_call import InnerCall
from mpq.network.own_forward import Again

Forward = Callable[[nn.Conv2d, Tensor], Tensor]


def called(forward: Forward, layer: nn.Conv2d, x: Tensor) -> InnerCall | None:
    """The inner call of a convolution with another forward."""

    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            """As it is given."""
            return forward(self, x)

    own = Own(2, 4, 3, padding=1, padding_mode="circular", bias=layer.bias is not None)
    own.load_state_dict(layer.state_dict())
    return InnerCall.of(Again(own, (x,), {}))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def test_what_the_operator_reads_and_how_it_slides(x: Tensor) -> None:
    """By position or by name; numbers of one axis stand for all."""
    layer = nn.Conv2d(2, 4, 3)

    def forward(own: nn.Conv2d, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 3, 1, 0))
        return F.conv2d(padded, own.weight, own.bias, (2, 1), padding=1, dilation=1)

    found = called(forward, layer, x)

    assert found is not None
    torch.testing.assert_close(found.read, F.pad(x, (0, 3, 1, 0)))
    plain: Any = found.layer_module
    assert (plain.stride, plain.padding, plain.dilation) == ((2, 1), (1, 1), (1, 1))
    assert (plain.groups, plain.padding_mode) == (1, "zeros")
    assert layer.bias is not None
    torch.testing.assert_close(found.bias, layer.bias.detach())


@pytest.mark.parametrize(
    "forward",
    [
        pytest.param(lambda own, x: F.conv2d(x, 2 * own.weight), id="another weight"),
        pytest.param(lambda own, x: F.conv2d(x, own.weight) * 2, id="more behind it"),
        pytest.param(lambda own, x: F.conv2d(x, own.weight).relu_(), id="in place"),
        pytest.param(
            lambda own, x: F.conv2d(x, own.weight) + F.conv2d(x * 2, own.weight), id="twice"
        ),
        pytest.param(
            lambda own, x: F.linear(F.unfold(x, 3).mT, own.weight.flatten(1)).mT, id="unfolded"
        ),
    ],
)
def test_what_is_more_than_that_is_none(forward: Forward, x: Tensor) -> None:
    assert called(forward, nn.Conv2d(2, 4, 3, bias=False), x) is None


def test_another_operator_is_none(x: Tensor) -> None:
    """A convolution whose weight a linear layer reads."""

    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            """Over channels."""
            return F.linear(x.movedim(1, -1), self.weight.flatten(1)).movedim(-1, 1)

    assert InnerCall.of(Again(Own(2, 4, 1, bias=False), (x,), {})) is None


def test_the_layer_is_left_as_found(x: Tensor) -> None:
    layer = nn.Conv2d(2, 4, 3, stride=2)
    own = layer.padding, layer.stride, layer.weight

    InnerCall.of(Again(layer, (x,), {}))

    assert (layer.padding, layer.stride, layer.weight) == own
