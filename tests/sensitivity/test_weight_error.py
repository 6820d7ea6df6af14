"""Relative rounding errors, against sums and integrals computed in the test."""

import numpy as np
import pytest
import torch
from torch import nn

from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, WeightError
from mpq.sensitivity.weight_error import normal_error, relative_error


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Words(nn.Module):
    """An embedding, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.table(ids))
        return out


def relative(weight: torch.Tensor, bits: int) -> float:
    """Squared error over squared norm with full symmetric ranges, in numpy."""
    rows = weight.detach().double().numpy()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = np.maximum(rows.min(axis=1) / low, rows.max(axis=1) / high)[:, None]
    rounded = np.clip(np.round(rows / scale), low, high) * scale
    return float(((rounded - rows) ** 2).sum() / (rows**2).sum())


def test_loss_is_the_relative_error() -> None:
    """Of the weight, plus that of a normal input, which an embedding does not read."""
    model = Words().eval()
    data = Calibration([torch.randint(0, 9, (2, 3))])
    candidates = tuple(map(Precision.parse, ("w2", "w4", "w4a8d", "fp32")))
    quantizer = Quantizer(ActivationRanges({}), weight_range="minmax")

    table = (
        WeightError()
        .estimate(Estimation(Network.of(model, data), data, quantizer, candidates))
        .table
    )

    assert (table.name, table.unit) == ("weight-error", "relative")
    for row, weight in enumerate((model.table.weight, model.fc.weight)):
        two, four = relative(weight, 2), relative(weight, 4)
        of_input = row * normal_error(candidates[2].activation)
        assert table.values[row] == pytest.approx([two, four, four + of_input, 0], rel=1e-4)


def test_data_are_not_read() -> None:
    """No data, no forward pass: a source that fails does not matter."""
    model = nn.Linear(4, 3).eval()
    network = Network.of(model, [torch.randn(2, 4)])
    candidates = (Precision.parse("w2a8"),)

    def fail() -> list[torch.Tensor]:
        raise AssertionError("read")

    found = WeightError().estimate(
        Estimation(network, Calibration(fail), Quantizer(ActivationRanges({})), candidates)
    )

    assert found.table.values[0, 0] > 0
    assert found.interactions is None


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e4])
def test_scale_of_the_weight_does_not_matter(factor: float) -> None:
    """The error is relative."""
    original = torch.randn(5, 6)
    rounded = original + 0.1 * torch.randn(5, 6)

    found = relative_error(original * factor, rounded * factor)

    assert found == pytest.approx(relative_error(original, rounded), rel=1e-4)


def test_zeros_cost_nothing() -> None:
    """Every format holds a tensor of zeros."""
    found = relative_error(torch.zeros(3, 4), torch.zeros(3, 4))

    assert found == 0.0


@pytest.mark.parametrize(
    ("bits", "expected"),
    # Mean squared error of the best uniform quantizer with 2^b levels for a normal number:
    # Max (1960), Quantizing for minimum distortion, table II.
    [(2, 0.1188), (3, 0.03744), (4, 0.01154)],
)
def test_normal_error_is_close_to_the_best_uniform_quantizer(bits: int, expected: float) -> None:
    """Symmetric integers have a zero and one level too many below it, so cost a little more."""
    found = normal_error(Precision.parse(f"w32a{bits}s").activation)

    assert expected <= found <= 1.45 * expected


@pytest.mark.parametrize(
    ("text", "step"), [("bf16", 2.0**-8), ("fp16", 2.0**-11), ("fp8_e4m3", 2.0**-4)]
)
def test_normal_error_of_a_float_is_that_of_its_mantissa(text: str, step: float) -> None:
    """The relative error of a rounded mantissa is at most ``step``; its mean square is a share."""
    found = normal_error(Precision.parse(text).activation)

    # uniform within half a unit in the last place: u^2 / 3, and 1/x^2 averaged over a binade
    assert 0.3 * step**2 / 3 < found < step**2 / 3


def test_normal_error_of_fp32_is_zero() -> None:
    """Nothing is rounded."""
    assert normal_error(Precision.parse("fp32").activation) == 0.0
