"""Prices of blocks of inputs: half of squared errors times squared gradients."""

import numpy as np
import torch
from torch import nn

import mpq
from mpq.quantization.precision import Precision
from mpq.quantization.rounding import quantize_activation
from mpq.sensitivity.passes.block_prices import block_prices
from mpq.workflows.setup import Prepared


def test_of_one_output_they_are_in_closed_form() -> None:
    """Its gradients are the weights, whatever the signs; blocks of examples add up."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(10, 1)).eval(), torch.randn(32, 10)
    candidates = ["w8a3dg2", "w8a8dg2"]
    metric = "squared-error:relative=false"
    task = mpq.Task(net, [x[:20], x[20:]], [x[:4]], candidates=candidates, metric=metric)
    on = Prepared.of(task).asked
    formats = [Precision.parse(text).activation for text in candidates]

    found = block_prices(on, {"0": formats}, 4, seed=0)["0"]

    weight = net.get_parameter("0.weight").detach()[0]
    for column, tensor_format in enumerate(formats):
        errors = quantize_activation(x, tensor_format, None, 1) - x
        cells = 0.5 * (errors * weight).double().square().mean(dim=0).numpy()
        expected = [cells[:4].sum(), cells[4:8].sum(), cells[8:].sum()]
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-5)
