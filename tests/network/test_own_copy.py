"""One parameter in two layouts: two quantized tensors come out, and two are counted."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mpq.backends.simulate import Simulate
from mpq.hardware_profiles.linear import weight_bytes
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import ESTIMATORS
from mpq.sensitivity.estimation import Estimation


class Pair(nn.Module):
    """Two layers with weights of one shape, then a mean over all but the channels."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y.flatten(2).mean(dim=2) if y.ndim > 2 else y


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution and transposed": (
        lambda: nn.Conv2d(4, 4, 3), lambda: nn.ConvTranspose2d(4, 4, 3), (4, 6, 6)
    ),
    "linear and Conv1D": (lambda: nn.Linear(6, 6), lambda: Conv1D(6, 6), (6,)),
    "transposed with other groups": (
        lambda: nn.ConvTranspose1d(4, 4, 3, bias=False),
        lambda: nn.ConvTranspose1d(4, 8, 3, groups=2, bias=False),
        (4, 6),
    ),
}  # fmt: skip


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, Calibration]:
    """A network with one parameter in two layouts, its copy with two parameters, and data."""
    torch.manual_seed(0)
    first, second, shape = PAIRS[request.param]
    shared, parted = Pair(first(), second()).eval(), Pair(first(), second()).eval()
    shared.second.weight = shared.first.weight
    parted.load_state_dict(shared.state_dict())
    return shared, parted, Calibration([torch.randn(5, *shape) for _ in range(2)])


@pytest.mark.parametrize("estimator", ["sketch", "measured", "fisher", "hessian-trace"])
def test_estimates_are_those_of_two_parameters(
    pair: tuple[nn.Module, nn.Module, Calibration], estimator: str
) -> None:
    """Each layer is rounded along its own channels, as if the weight were two."""
    candidates = [Precision.parse("w2"), Precision.parse("w4")]
    tables = []
    for model in pair[:2]:
        network = Network.of(model, pair[2])
        quantizer = Quantizer(ActivationRanges.calibrate(network, pair[2], candidates, "minmax"))
        on = Estimation(network, pair[2], quantizer, candidates)
        tables.append(ESTIMATORS.build(estimator).estimate(on).table)

    shared, parted = tables

    assert (shared.values == parted.values).all()
    assert (shared.values > 0).all()


def test_two_tensors_are_counted_and_come_out(
    pair: tuple[nn.Module, nn.Module, Calibration],
) -> None:
    """Bytes are those of two weights, and the quantized network holds two."""
    shared, parted, data = pair
    w4 = Precision.parse("w4")

    layers = Network.of(shared, data).layers
    assignment = Assignment(
        tuple(AssignedLayer(x.name, x.kind, x.weight_shape, w4) for x in layers)
    )

    assert layers == Network.of(parted, data).layers
    assert [layer.weight_of for layer in layers] == [None, None]
    (expected,) = {layer.num_weights for layer in layers}
    fp32 = Precision.parse("fp32")
    assert [weight_bytes(layer, fp32, layers) for layer in layers] == [4 * expected] * 2
    found = Simulate().quantize(shared, assignment).state_dict()
    assert all(
        torch.equal(found[name], value)
        for name, value in Simulate().quantize(parted, assignment).state_dict().items()
    )
    assert shared.get_parameter("first.weight") is shared.get_parameter("second.weight")
