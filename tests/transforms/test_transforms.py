"""Transformations: what all of them promise, and what each one does."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpq.errors import InputError
from mpq.network.examples import Calibration
from mpq.network.modules import share_parameters
from mpq.network.reparametrization import Reparametrization
from mpq.network.reparametrized import reparametrized
from mpq.quantization.precision import Precision
from mpq.transforms import TRANSFORMS, Equalize, Found, Rotate, Smooth, Transform, Transforming
from mpq.transforms.factors import smoothing
from tests.transforms.networks import OUTLIER, Words, jittered, outlier_net

ALL = [TRANSFORMS.build(name) for name in TRANSFORMS.names()]
every_transform = pytest.mark.parametrize("transform", ALL, ids=lambda t: str(t.name))


def found(transform: Transform, net: nn.Module, x: Tensor, precision: str = "w4a4") -> Found:
    """What a transformation makes of a network, with some examples."""
    on = Transforming(share_parameters(net), Calibration.of([x]), Precision.parse(precision))
    return transform.found(on)


@every_transform
def test_the_network_stays_the_same(transform: Transform) -> None:
    """Attention, gates, shortcuts, norms: outputs move by less than 1e-5 of the largest."""
    net, ids = jittered(Words(is_tied=False)), torch.randint(13, (16, 7))

    changes = found(transform, net, ids).changes

    with torch.no_grad():
        before, after = net(ids), reparametrized(net, changes)(ids)
    assert float((before - after).abs().max() / before.abs().max()) < 1e-5


@every_transform
def test_twice_the_same(transform: Transform) -> None:
    """Nothing is drawn that is not seeded, and the model is left as found."""
    net, x = outlier_net(), torch.randn(64, 16)
    kept = {name: p.clone() for name, p in net.named_parameters()}

    first, second = (Reparametrization((), found(transform, net, x).changes) for _ in range(2))

    assert first == second
    assert all(torch.equal(p, kept[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize(
    "build", [lambda: Equalize(sweeps=0), lambda: Rotate(steps=0), lambda: Smooth(grid=0)]
)
def test_options_are_looked_at(build: type[Transform]) -> None:
    """At least one sweep, at least one exponent, at least one step."""
    with pytest.raises(InputError, match="at least one"):
        build()


def test_equalized_ranges_are_equal() -> None:
    """The closed form: both layers have the geometric mean of their ranges in every channel."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    made = net.get_parameter("0.weight").detach().abs().amax(1)
    read = net.get_parameter("2.weight").detach().abs().amax(0)

    other = reparametrized(net, found(Equalize(), net, torch.randn(8, 5)).changes)

    expected = (made * read).sqrt()
    torch.testing.assert_close(other.get_parameter("0.weight").abs().amax(1), expected)
    torch.testing.assert_close(other.get_parameter("2.weight").abs().amax(0), expected)


def test_equalize_sees_through_a_batch_norm() -> None:
    """The ranges are those of the kernel with the BatchNorm in it."""
    torch.manual_seed(0)
    net = jittered(nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)))

    other = reparametrized(net, found(Equalize(), net, torch.randn(4, 2, 5, 5)).changes)

    scale = other.get_parameter("1.weight") / (net.get_buffer("1.running_var") + 1e-5).sqrt()
    made = scale.abs() * net.get_parameter("0.weight").detach().abs().amax((1, 2, 3))
    torch.testing.assert_close(made, other.get_parameter("2.weight").abs().amax((0, 2, 3)))


def test_smooth_takes_outliers_out_of_the_inputs() -> None:
    """A channel a hundred times larger than the others is one of them afterwards."""
    net, x = outlier_net(), torch.randn(128, 16, generator=torch.Generator().manual_seed(1))

    other = reparametrized(net, found(Smooth(), net, x).changes)

    def excess(module: nn.Module) -> float:
        with torch.no_grad():
            read = module.get_submodule("0")(x).abs().amax(dim=0)
        return float(read[OUTLIER] / read.median())

    assert excess(net) > 50
    assert excess(other) < 10


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_smoothing_is_the_formula(alpha: float) -> None:
    """Up to a common factor, which nothing depends on; what is not free or unknown has 1."""
    inputs, weights = np.array([8.0, 2.0, 0.0, 5.0]), np.array([1.0, 4.0, 1.0, 1.0])
    is_free = np.array([True, True, True, False])

    factors = smoothing(inputs, weights, alpha, 1 - alpha, is_free)

    by_formula = inputs**alpha / weights ** (1 - alpha)
    assert factors[0] / factors[1] == pytest.approx(by_formula[0] / by_formula[1])
    assert factors[2:].tolist() == [1.0, 1.0]
