"""The ranges of layers' outputs, which an export reads off the calibration examples."""

import pytest
import torch
from torch import Tensor, nn

from mpq.backends.onnx.template import _output_ranges
from mpq.network.examples import Calibration
from mpq.network.network import Network


class Forces(nn.Module):
    """An energy's gradient by its input, which the forward takes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Three numbers or more for each row."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.last(torch.tanh(self.first(x))).sum()
            return -torch.autograd.grad(energy, x)[0]


def test_outputs_that_the_network_differentiates_are_read_without_a_warning() -> None:
    """Torch warns of numbers that are taken from a tensor with gradients."""
    torch.manual_seed(0)
    data = Calibration([torch.randn(4, 5)])
    model = Forces().eval()

    found = _output_ranges(Network.of(model, data), data)

    outputs = model.first(data.first().args[0]).detach()
    assert found["first"] == pytest.approx((float(outputs.min()), float(outputs.max())))
