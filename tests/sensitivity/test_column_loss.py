"""Column losses against numpy: steps, and the Cholesky factor of the inverse second moment."""

import numpy as np
import pytest
import torch
from torch import nn

from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.split import Split
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import ColumnLoss, Estimation, Sensitivity

CANDIDATES = tuple(map(Precision.parse, ("w3", "w5", "w4g3", "fp4", "w0")))


def estimated(
    model: nn.Module, data: list[torch.Tensor], split: str = "none", by_layer: bool = False
) -> Sensitivity:
    """By ranges from the least to the largest number."""
    calibration = Calibration(data)
    network = Network.of(model.eval(), calibration)
    ranges = ActivationRanges.calibrate(network, calibration, CANDIDATES)
    quantizer = Quantizer(ranges, weight_range="minmax")
    parts = Split.parse(split)
    on = Estimation(network, calibration, quantizer, CANDIDATES, split=parts)
    return ColumnLoss(by_layer).estimate(on)


def lengths(x: torch.Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """``[K]`` squares of the diagonal, the largest inputs first, damped by .01 of the mean."""
    moment = (x.mT @ x / len(x)).double().numpy()
    moment += 0.01 * np.diag(moment).mean() * np.eye(len(moment))
    order = np.argsort(-np.diag(moment))
    upper = np.linalg.cholesky(np.linalg.inv(moment[np.ix_(order, order)])).T
    found = np.empty(len(order))
    # The upper factor of H^-1 = U^T U; numpy's lower one is its transpose.
    found[order] = np.diag(upper) ** 2
    return found


def test_steps_and_what_others_cannot_make_good() -> None:
    """Of a channel, of groups, and of a float whose errors are taken themselves."""
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 4, bias=False), torch.randn(40, 5) @ torch.randn(5, 5)

    found = estimated(layer, [x[:30], x[30:]], "channels")

    w, squares = layer.weight.detach().double().numpy(), lengths(x)
    for column, bits in ((0, 3), (1, 5)):
        most = 2 ** (bits - 1)
        step = np.maximum(-w.min(axis=1) / most, w.max(axis=1) / (most - 1))
        expected = step**2 / 12 * (1 / squares).sum()
        assert found.channels[""][:, column] == pytest.approx(expected, rel=1e-4)
    step = np.maximum.reduceat(np.maximum(-w / 8, w / 7), [0, 3], axis=1)
    expected = step.repeat([3, 2], axis=1) ** 2 / 12 / squares
    assert found.channels[""][:, 2] == pytest.approx(expected.sum(axis=1), rel=3e-3)  # fp16
    assert found.channels[""][:, 4] == pytest.approx((w**2 / squares).sum(axis=1), rel=1e-4)
    assert found.table.values == pytest.approx(found.channels[""].sum(axis=0)[None])
    assert found.table.unit == "squared_output"


def test_layers_in_units_of_their_own() -> None:
    """As many bits lose as much, by the mean squared range and the geometric mean of inputs."""
    torch.manual_seed(3)
    layer, x = nn.Linear(5, 4, bias=False), torch.randn(40, 5) @ torch.randn(5, 5)

    own, found = (estimated(layer, [x], by_layer=how).table for how in (False, True))

    w = layer.weight.detach().double().numpy()
    ranges = np.maximum(w.max(axis=1), 0) - np.minimum(w.min(axis=1), 0)
    unit = (ranges**2).mean() / np.exp(np.log(lengths(x)).mean())
    assert found.values == pytest.approx(own.values / unit, rel=1e-4)
    assert found.unit == "relative"


@pytest.mark.parametrize("is_weight", [False, True])
def test_a_layer_that_does_nothing_loses_nothing_in_any_unit(is_weight: bool) -> None:
    """All that it reads is 0, or its weight: finite prices, and none of what was left out."""
    layer, x = nn.Linear(5, 4, bias=False), torch.ones(8, 5)
    nn.init.zeros_(layer.weight if is_weight else x)

    found = estimated(layer, [x], by_layer=True).table.values

    assert found[0, 4] == 0
    assert np.isfinite(found).all()


def test_inputs_that_are_parts() -> None:
    """Prices of two inputs each add up to the layer's."""
    torch.manual_seed(1)
    layer, x = nn.Linear(6, 4), torch.randn(40, 6) @ torch.randn(6, 6)

    by_part = estimated(layer, [x], "columns:2")
    whole = estimated(layer, [x]).table.values

    assert by_part.channels[""].shape == (3, 5)
    assert by_part.channels[""].sum(axis=0)[None] == pytest.approx(whole)
    ratio = by_part.channels[""][:, 0] / (1 / lengths(x)).reshape(3, 2).sum(axis=1)
    assert ratio == pytest.approx(np.full(3, ratio[0]), rel=1e-4)


def test_rows_of_an_embedding_are_looked_up_alone() -> None:
    """A token of eight in each of five places: a number counts five eighths."""
    torch.manual_seed(2)
    table = nn.Embedding(8, 3)

    found = estimated(nn.Sequential(table, nn.Linear(3, 2)), [torch.randint(8, (4, 5))])

    w = table.weight.detach().double()
    step = torch.maximum(-w.amin(1) / 4, w.amax(1) / 3)
    expected = float((step.square() / 12).sum()) * 3 * 5 / 8
    assert found.table.values[0, 0] == pytest.approx(expected, rel=1e-5)
