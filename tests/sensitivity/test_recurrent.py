"""Estimators on recurrent networks, and on layers that are called with nothing."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation

N, T, F, H, CLASSES = 6, 5, 4, 3, 3
CANDIDATES = tuple(map(Precision.parse, ("w2", "w4a8", "w8a8d")))


def table(model: nn.Module, data: Any, name: str) -> npt.NDArray[np.floating]:
    """``[L, B]`` of an estimator."""
    examples, network = Calibration.of(data), Network.of(model.eval(), data)
    quantizer = Quantizer(ActivationRanges.calibrate(network, examples, CANDIDATES))
    estimator = mpq.ESTIMATORS.build(name)
    found = estimator.estimate(Estimation(network, examples, quantizer, CANDIDATES))
    return np.asarray(found.table.values)


class Recurrent(nn.Module):
    """torch's own LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(F, H, batch_first=True)
        self.head = nn.Linear(H, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0].mean(dim=1))
        return y


class WrittenOut(nn.Module):
    """The same, with layers that a person would write."""

    def __init__(self, model: Recurrent) -> None:
        super().__init__()
        self.read, self.kept = nn.Linear(F, 4 * H), nn.Linear(H, 4 * H)
        for layer, end in ((self.read, "ih_l0"), (self.kept, "hh_l0")):
            layer.weight = model.rnn.get_parameter(f"weight_{end}")
            layer.bias = model.rnn.get_parameter(f"bias_{end}")
        self.head = model.head

    def forward(self, x: Tensor) -> Tensor:
        read, outputs = self.read(x), []
        hidden = cell = torch.zeros(len(x), H)
        for step in range(x.shape[1]):
            i, f, g, o = (read[:, step] + self.kept(hidden)).chunk(4, dim=-1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
            outputs.append(hidden)
        y: Tensor = self.head(torch.stack(outputs, dim=1).mean(dim=1))
        return y


@pytest.mark.parametrize("name", mpq.ESTIMATORS.names())
def test_an_lstm_costs_what_it_costs_written_out(name: str) -> None:
    """Every estimator sees the same layers, with the same calls."""
    torch.manual_seed(0)
    model = Recurrent()
    data = [(torch.randn(N, T, F), torch.randint(CLASSES, (N,)))]

    found, expected = table(model, data, name), table(WrittenOut(model), data, name)

    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)


class Routed(nn.Module):
    """An expert that reads the rows that a router sends to it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.expert = nn.Linear(F, F), nn.Linear(F, F)
        self.head = nn.Linear(F, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        rows = (x[:, 0] > 0).nonzero().flatten()
        hidden = hidden.index_add(0, rows, self.expert(hidden[rows]))
        y: Tensor = self.head(hidden.relu())
        return y


@pytest.mark.parametrize("name", mpq.ESTIMATORS.names())
def test_an_expert_that_one_batch_does_not_reach(name: str) -> None:
    """It is called with no row there, which adds nothing: no error, and no cost of its own."""
    torch.manual_seed(0)
    model, reached = Routed(), torch.randn(N, F).abs()
    data = [
        (reached, torch.randint(CLASSES, (N,))),
        (-torch.randn(N, F).abs(), torch.randint(CLASSES, (N,))),
    ]

    found = table(model, data, name)

    assert found.shape == (3, len(CANDIDATES))
    assert np.isfinite(found).all()
    assert found[1, 0] != 0
