"""The orthogonality metric against feature products written out, and its invariances."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpq.errors import InputError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, Orthogonality, WeightError
from mpq.sensitivity.orthogonality import orthogonality_matrix


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Net(nn.Module):
    """A convolution and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(1, 3, 3), nn.Linear(12, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.fc(self.conv(x).flatten(1)).relu())
        return out

    def outputs(self, x: Tensor) -> list[np.ndarray]:
        """``[N, F]`` of every layer, in float64."""
        conv = self.conv(x).flatten(1)
        fc = self.fc(conv)
        return [y.detach().double().numpy() for y in (conv, fc, self.head(fc.relu()))]


def metric(a: np.ndarray, b: np.ndarray) -> float:
    """``|B^T A|^2 / (|A^T A| |B^T B|)``, as the paper writes it."""
    norms = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.linalg.norm(b.T @ a) ** 2 / norms)


@pytest.mark.parametrize("centered", [False, True])
def test_matrix_of_one_batch_is_the_papers(centered: bool) -> None:
    """From products of features; centred, the mean over examples is taken out first."""
    model, x = Net().eval(), torch.randn(9, 1, 4, 4)
    data = Calibration([x])

    found = orthogonality_matrix(
        Estimation(Network.of(model, data), data, Quantizer(ActivationRanges({})), ()), centered
    )

    features = model.outputs(x)
    if centered:
        features = [y - y.mean(axis=0) for y in features]
    expected = [[metric(a, b) for b in features] for a in features]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_batches_are_blocks() -> None:
    """What examples of different batches have in common is left out of the Gram matrices."""
    model, x = Net().eval(), torch.randn(7, 1, 4, 4)
    data = Calibration([x[:4], x[4:]])

    found = orthogonality_matrix(
        Estimation(Network.of(model, data), data, Quantizer(ActivationRanges({})), ())
    )

    mask = np.zeros((7, 7))
    mask[:4, :4] = mask[4:, 4:] = 1
    grams = [(y @ y.T) * mask for y in model.outputs(x)]
    norms = [np.linalg.norm(gram) for gram in grams]
    expected = [
        [(a * b).sum() / (m * n) for b, n in zip(grams, norms, strict=True)]
        for a, m in zip(grams, norms, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_layers_that_say_the_same_are_not_orthogonal_and_others_are() -> None:
    """A rotated and scaled output has 1, an output of other examples 0."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(2, 2, bias=False) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.a(x) + self.b(x) + self.c(x.flip(1) * 0 + x)
            return out

    model, x = Branches().eval(), torch.eye(2)
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        model.b.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
        model.c.weight.copy_(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
    data = Calibration([x])

    found = orthogonality_matrix(
        Estimation(Network.of(model, data), data, Quantizer(ActivationRanges({})), ())
    )

    np.testing.assert_allclose(found, [[1, 1, 0], [1, 1, 0], [0, 0, 1]], atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
def test_importance_falls_with_what_a_layer_shares(beta: float) -> None:
    """``exp(-beta gamma)`` times the relative rounding error."""
    model, x = Net().eval(), torch.randn(9, 1, 4, 4)
    data, candidates = Calibration([x]), tuple(map(Precision.parse, ("w2", "w4")))
    network, quantizer = Network.of(model, data), Quantizer(ActivationRanges({}))

    found = Orthogonality(beta).estimate(Estimation(network, data, quantizer, candidates)).table

    features = model.outputs(x)
    gamma = [sum(metric(a, b) for b in features) - 1 for a in features]
    errors = WeightError().estimate(Estimation(network, data, quantizer, candidates)).table.values
    np.testing.assert_allclose(
        found.values, np.exp(-beta * np.array(gamma))[:, None] * errors, 1e-4
    )
    assert (found.name, found.unit) == ("orthogonality", "relative")


def test_negative_beta_is_refused() -> None:
    """It would turn importance around."""
    with pytest.raises(InputError, match="beta >= 0; got -1"):
        Orthogonality(beta=-1.0)
