"""Shares of outlying weights, against numpy and the normal distribution."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, WeightError, ZScore
from mpq.sensitivity.z_score import outlying_share


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_share_of_a_known_weight() -> None:
    """Mean 1 and standard deviation 2: one of four numbers is above 3; one below -1 is not."""
    weight = torch.tensor([1.0 + 8**0.5, 1.0, 1.0, 1.0 - 8**0.5])

    assert outlying_share(weight) == 0.25


def test_share_of_normal_weights() -> None:
    """One minus the distribution function at 1: 15.9 %."""
    found = outlying_share(torch.randn(300, 300) * 0.1 + 7)

    assert found == pytest.approx(norm.sf(1.0), abs=0.005)


def test_equal_weights_do_not_stand_out() -> None:
    """Nothing is above the mean."""
    assert outlying_share(torch.full((3, 4), 0.3)) == 0.0


def test_table_is_importance_times_rounding_error() -> None:
    """Layers with more outlying weights cost less of their error."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).eval()
    data = Calibration([torch.randn(2, 4)])
    candidates = tuple(map(Precision.parse, ("w2", "w4a8d", "fp32")))
    network, quantizer = Network.of(model, data), Quantizer(ActivationRanges({}))

    found = ZScore().estimate(Estimation(network, data, quantizer, candidates)).table

    errors = WeightError().estimate(Estimation(network, data, quantizer, candidates)).table.values
    for row in range(2):
        w = network.weight(str(row)).double().numpy()
        importance = 1 - np.mean((w - w.mean()) / w.std() > 1)
        assert found.values[row] == pytest.approx(importance * errors[row])
    assert (found.name, found.unit) == ("z-score", "relative")


def test_data_are_not_read() -> None:
    """A source that fails does not matter."""
    network = Network.of(nn.Linear(4, 3).eval(), [torch.randn(2, 4)])

    def fail() -> list[torch.Tensor]:
        raise AssertionError("read")

    found = ZScore().estimate(
        Estimation(
            network, Calibration(fail), Quantizer(ActivationRanges({})), (Precision.parse("w2"),)
        )
    )

    assert found.table.values[0, 0] > 0
