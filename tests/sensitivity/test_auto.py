"""The default estimator: predictions that are checked, and measured where they fail."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpq import ESTIMATORS, Calibration, Precision
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, Sensitivity
from mpq.sensitivity.spot_check import NUM_CELLS, spot_check
from tests.blind import BETWEEN, Blocked, Inner, examples

CANDIDATES = tuple(map(Precision.parse, ("w2", "w4", "w8", "fp32")))


def asked(model: nn.Module, data: list[Tensor] | None = None) -> Estimation:
    """The question of a network at three precisions and the original one."""
    data = examples() if data is None else data
    network = Network.of(model.eval(), data)
    calibration = Calibration.of(data)
    ranges = ActivationRanges.calibrate(network, calibration, CANDIDATES)
    return Estimation(network, calibration, Quantizer(ranges), CANDIDATES)


def estimate(on: Estimation, name: str = "auto") -> Sensitivity:
    """By the estimator of a name."""
    return ESTIMATORS.build(name, 0).estimate(on)


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_a_layer_that_no_gradient_reaches_is_measured_and_named(between: Inner) -> None:
    """That row alone; the others are the sketch's."""
    on = asked(Blocked(between))

    found, measured, sketch = estimate(on), estimate(on, "measured"), estimate(on, "sketch")

    assert found.check is not None
    assert found.check.no_gradient == found.check.repaired == ("a",)
    np.testing.assert_allclose(found.table.values[0], measured.table.values[0], rtol=1e-9)
    np.testing.assert_array_equal(found.table.values[1:], sketch.table.values[1:])
    assert found.interactions is not None
    assert not found.interactions.factor[:, 0].any()
    assert "no gradient reaches a (" in found.check.sentences[0]
    assert "measured instead" in found.check.sentences[0]


def test_where_gradients_flow_it_is_the_sketch() -> None:
    """And the check says that the predictions hold, after a few passes."""
    on = asked(Blocked(lambda x: x))

    found, sketch = estimate(on), estimate(on, "sketch")

    np.testing.assert_array_equal(found.table.values, sketch.table.values)
    assert found.check is not None
    assert (found.check.off, found.check.repaired, found.check.no_gradient) == ((), (), ())
    assert 0 < len(found.check.cells) <= NUM_CELLS
    assert found.check.forward_passes <= NUM_CELLS + 1


class NoGraph(nn.Module):
    """Everything is computed without gradients."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(16, 8), nn.Linear(8, 5)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.b(torch.relu(self.a(x)))
        return found


class OneWay(torch.autograd.Function):
    """An operation whose author wrote no backward pass."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        """Twice the input."""
        return x * 2


def one_way(x: Tensor) -> Tensor:
    """As it is used in a forward."""
    found: Tensor = OneWay.apply(x)  # type: ignore[no-untyped-call]
    return found


@pytest.mark.parametrize("model", [NoGraph(), Blocked(one_way)], ids=["no_grad", "no backward"])
def test_where_nothing_can_be_differentiated_all_is_measured(model: nn.Module) -> None:
    """With the cause, in a sentence."""
    on = asked(model)

    found, measured = estimate(on), estimate(on, "measured")

    np.testing.assert_array_equal(found.table.values, measured.table.values)
    assert found.check is not None
    assert found.check.fallback.startswith("no gradient can be computed: ")
    assert found.check.repaired == on.names
    assert "every layer was measured instead" in found.check.sentences[0]


def test_the_check_finds_rows_that_are_far_too_small() -> None:
    """A table whose cheapest layer is a thousand times too cheap, as one with a wrong gradient."""
    on = asked(Blocked(lambda x: x))
    table = estimate(on, "measured").table
    wrong = table.values.copy()
    wrong[1] /= 1000
    found = spot_check(on, replace(table, values=wrong))

    assert found.off == ("b",)
    assert "more than 20 x below the measurement at b" in found.sentences[0]
    assert "search with --sensitivity auto or measured" in found.sentences[0]


def test_other_units_are_not_compared() -> None:
    """A score that is no loss may still miss a layer altogether."""
    on = asked(Blocked(BETWEEN["round"]))
    score = estimate(on, "zero-cost")

    found = spot_check(on, score.table)

    assert score.table.unit != "nats"
    assert found.off == ()
