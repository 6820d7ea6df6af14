"""Measured KL, one layer at a time, against a network quantized by hand in the test."""

import copy

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor, nn

from mpq.calibration import Calibration
from mpq.model import Network
from mpq.precision import Precision
from mpq.quantization import ActivationRanges, Quantizer
from mpq.sensitivity import MeasuredKL


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def round_to(x: Tensor, bits: int) -> Tensor:
    """Symmetric rounding of every row with its own full range, in numpy."""
    rows = x.detach().double().numpy()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = np.maximum(rows.min(axis=-1) / low, rows.max(axis=-1) / high)[..., None]
    scale = np.where(scale > 0, scale, 1.0)  # a row of zeros
    return torch.from_numpy(np.clip(np.round(rows / scale), low, high) * scale).float()


def divergence(reference: Tensor, other: Tensor) -> float:
    """Mean over examples and positions, by scipy."""
    p, q = (x.detach().double().numpy() for x in (reference, other))
    log_p, log_q = scipy.special.log_softmax(p, -1), scipy.special.log_softmax(q, -1)
    return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


def make_model() -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


@pytest.mark.parametrize("shape", [(11, 5), (11, 4, 5)])
def test_loss_is_the_divergence_after_quantizing_one_layer(shape: tuple[int, ...]) -> None:
    """Weights and inputs rounded in numpy, uneven batches, vectors and sequences."""
    model, x = make_model(), torch.randn(shape)
    data = Calibration([x[:3], x[3:4], x[4:]])
    network = Network.of(model, data)
    quantizer = Quantizer(ActivationRanges({}), weight_range="minmax")
    choices = tuple(map(Precision.parse, ("w2", "w4a3sd", "fp32")))

    table = MeasuredKL().estimate(network, data, quantizer, choices).table

    assert (table.name, table.unit) == ("measured-kl", "nats")
    for row, layer in enumerate(("0", "2")):
        for column, (bits, input_bits) in enumerate([(2, None), (4, 3)]):
            changed = copy.deepcopy(model)
            linear = changed.get_submodule(layer)
            assert isinstance(linear, nn.Linear)
            linear.weight = nn.Parameter(round_to(linear.weight, bits))
            if input_bits is not None:
                linear.register_forward_pre_hook(lambda _, args: (round_to(args[0], 3),))
            expected = divergence(model(x), changed(x))
            assert table.values[row, column] == pytest.approx(expected, rel=1e-3)
    assert (table.values[:, 2] == 0).all()


def test_masked_positions_do_not_count() -> None:
    """Padding is left out of the mean over an example."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            out: Tensor = self.fc(x)
            return out

    model, x = Masked().eval(), torch.randn(6, 4, 5)
    mask = torch.tensor([1, 1, 1, 0]).expand(6, 4)
    data = Calibration([{"x": x, "attention_mask": mask}])
    quantizer = Quantizer(ActivationRanges({}), weight_range="minmax")

    found = MeasuredKL().estimate(
        Network.of(model, data), data, quantizer, (Precision.parse("w2"),)
    )

    changed = nn.functional.linear(x[:, :3], round_to(model.fc.weight, 2), model.fc.bias)
    expected = divergence(model.fc(x[:, :3]), changed)
    assert found.table.values[0, 0] == pytest.approx(expected, rel=1e-4)


def test_one_layer_alone_is_what_is_measured() -> None:
    """A network of one layer: the table is the whole network's divergence at each precision."""
    model, x = nn.Linear(5, 3).eval(), torch.randn(8, 5)
    data = Calibration([x])
    quantizer = Quantizer(ActivationRanges({}), weight_range="minmax")
    choices = tuple(Precision.parse(f"w{bits}") for bits in range(2, 9))

    found = MeasuredKL().estimate(Network.of(model, data), data, quantizer, choices)

    expected = [
        divergence(model(x), nn.functional.linear(x, round_to(model.weight, bits), model.bias))
        for bits in range(2, 9)
    ]
    assert found.table.values[0] == pytest.approx(expected, rel=1e-3)
