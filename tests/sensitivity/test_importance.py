"""Tables from importances, against products written out."""

import numpy as np
import pytest
import torch
from torch import nn

from mpq.errors import ModelError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation
from mpq.sensitivity.importance import importance_table

CHOICES = tuple(map(Precision.parse, ("w2", "w4", "fp32")))


def two_layers() -> Estimation:
    """What estimators take."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).eval()
    data = Calibration([torch.randn(2, 4)])
    return Estimation(Network.of(model, data), data, Quantizer(ActivationRanges({})), CHOICES)


def test_cells_are_importance_times_relative_error() -> None:
    """Squared error over squared norm of the weights, times the layer's number."""
    on = two_layers()

    found = importance_table(on, [2.0, 0.5], "mine")

    for row, (name, importance) in enumerate((("0", 2.0), ("1", 0.5))):
        weight = on.network.weight(name).double().numpy()
        for column, candidate in enumerate(CHOICES):
            layer_module = on.network.layer_module(name)
            rounded = on.quantizer.weight(name, layer_module, candidate.weight).double().numpy()
            error = ((rounded - weight) ** 2).sum() / (weight**2).sum()
            assert found.values[row, column] == pytest.approx(importance * error, rel=1e-6)
    assert (found.name, found.unit) == ("mine", "relative")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_importance_that_is_not_finite_is_a_model_error(value: float) -> None:
    """It names the layer."""
    with pytest.raises(ModelError, match="mine: layer '1' at w2a32 costs"):
        importance_table(two_layers(), [1.0, value], "mine")
