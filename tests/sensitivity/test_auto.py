"""The default estimator: predictions that are checked, and measured where they fail."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

import mpq
from mpq import ESTIMATORS, Calibration, Precision
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import CheckedCell, Estimation, OutputSketch, Sensitivity, SpotCheck
from mpq.sensitivity.checked import AGREEMENT
from mpq.sensitivity.passes import tiles
from mpq.sensitivity.spot_check import (
    NUM_CELLS,
    agreement,
    few_examples,
    measured_cells,
    measured_rows,
    out_of_order,
    spot_check,
)
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


def test_words_of_a_check_do_not_contradict_each_other() -> None:
    """Nothing of nothing does not hold, nor what is far above, nor an order that does not agree."""
    dear = CheckedCell("a", "w4", 60.0, 1.0, is_off=False, is_dear=True)
    right = CheckedCell("b", "w4", 1.0, 1.0, is_off=False)

    nothing = SpotCheck((), "nats", 12.0, fallback="no gradient", repaired=("a", "b"))
    above = SpotCheck((dear, right), "nats", 2.0)
    mixed = SpotCheck((right,) * 8, "nats", 123.0, agreement=0.1, out_of_order=("b",))

    assert (
        nothing.sentences[-1] == "spot check: no prediction was left to check (12 forward passes)"
    )
    assert above.sentences[-1] == "spot check: 1 of 2 predictions hold (2 forward passes)"
    assert "8 of 8 predictions hold, their order does not agree by tau 0.10" in mixed.sentences[-1]
    assert "(123 forward passes)" in mixed.sentences[-1]


@pytest.mark.parametrize("num_layers", [1, 3, 12])
def test_a_check_takes_at_most_nine_passes_over_its_examples(num_layers: int) -> None:
    """Of so few that all of them are looked at."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16) for _ in range(num_layers)]
    on = asked(nn.Sequential(*layers), [torch.randn(8, 16), torch.randn(8, 16)])

    passes = spot_check(on, estimate(on, "sketch").table).forward_passes

    assert passes <= NUM_CELLS + 1


@pytest.mark.parametrize(("positions", "expected"), [(1, 16), (64, 8), (256, 4), (100_000, 4)])
def test_a_check_looks_at_fewer_examples_of_long_sequences(positions: int, expected: int) -> None:
    """As many as have 512 positions, from 4 to 16, or a third of all, up to 64."""
    on = asked(nn.Sequential(nn.Linear(16, 16)), [torch.randn(40, 16)])
    on = replace(on, network=replace(on.network, num_positions=positions))
    many = replace(on, data=Calibration([torch.randn(100, 16), torch.randn(200, 16)]))

    assert few_examples(on).data.num_examples == max(expected, 14)
    assert few_examples(replace(on, data=on.data.until(8))).data.num_examples == min(expected, 8)
    assert few_examples(many).data.num_examples == 64


def test_the_positions_of_a_network_are_those_of_its_output() -> None:
    """Of a classifier one."""
    language = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8))

    of_sequences = asked(language, [torch.randint(8, (2, 7))])
    of_rows = asked(nn.Sequential(nn.Linear(16, 16)), [torch.randn(2, 16)])

    assert of_sequences.network.num_positions == 7
    assert of_rows.network.num_positions == 1


def test_single_cells_are_measured_as_whole_rows_are() -> None:
    """In one pass of the original for all of them, layers and precisions in any order."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16) for _ in range(4)]
    on = asked(nn.Sequential(*layers), [torch.randn(8, 16), torch.randn(5, 16)])
    rows = measured_rows(on, ["0", "2", "3"])

    found = measured_cells(on, {"3": [1, 0], "0": [1]}, "cells")

    assert found["3"].tolist() == [rows[2, 1], rows[2, 0]]
    assert found["0"].tolist() == [rows[0, 1]]
    assert (rows[:, :2] > 0).all()


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


def of_order(predicted: Sequence[float], measured: Sequence[float]) -> list[CheckedCell]:
    """Cells of a layer each."""
    pairs = enumerate(zip(predicted, measured, strict=True))
    return [CheckedCell(f"l{i}", "w4", p, m, is_off=False) for i, (p, m) in pairs]


def test_agreement_is_kendalls_tau() -> None:
    """As scipy has it, where all measurements are far apart."""
    measured = [4.0**i for i in range(8)]
    predicted = [2.0, 1.0, 5.0, 3.0, 4.0, 8.0, 6.0, 7.0]

    found = agreement(of_order(predicted, measured))

    assert found == pytest.approx(kendalltau(predicted, measured).statistic)


def test_layers_that_are_alike_have_no_order() -> None:
    """A factor of two is what few examples cannot tell; nor is rounding noise an order."""
    assert agreement(of_order(range(8), [1.9 - 0.1 * i for i in range(8)])) is None
    noise = [1e-9 * 3.0**i for i in range(7)]
    assert agreement(of_order(range(8, 0, -1), [*noise, 1e4])) is None


def test_the_layers_that_are_out_of_order_are_named() -> None:
    """Those without which the others agree, and no more."""
    measured = [4.0**i for i in range(8)]
    cells = of_order([*measured[:6], measured[6] / 4.0**9, measured[7] / 4.0**9], measured)
    wrong = [CheckedCell("l0", "w2", 4.0**9, 4.0 ** (-1), is_off=False), *cells]

    assert agreement(wrong) < AGREEMENT  # type: ignore[operator]
    assert set(out_of_order(wrong)) <= {"l0", "l6", "l7"}
    assert out_of_order(wrong)
    assert out_of_order(of_order(measured, measured)) == ()


class Deep(nn.Module):
    """Eight layers, each of which matters less than the one before."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(nn.Linear(16, 5) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of five classes."""
        found: Tensor = sum(part(x) * 0.5**i for i, part in enumerate(self.parts))
        return found


def test_an_order_upside_down_is_told_in_another_unit_too() -> None:
    """Where sizes cannot be compared, ranks can."""
    on = asked(Deep())
    table = estimate(on, "measured").table

    found = spot_check(on, replace(table, values=1 / (table.values + 1e-9), unit="relative"))

    assert found.off == ()
    assert found.agreement is not None
    assert found.agreement < 0
    assert found.failing == found.out_of_order != ()
    assert "in another order (Kendall's tau -" in found.sentences[0]
    assert "search with --sensitivity auto or measured" in found.sentences[0]
    assert "predictions hold" not in found.sentences[-1]


def test_auto_mends_an_order_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several layers are out of order, all are measured."""
    on = asked(Deep())
    measured = estimate(on, "measured").table
    largest = measured.values.max()
    wrong = replace(measured, values=np.where(measured.values > 0, largest**2, 0) / (
        measured.values + 1e-3 * largest))  # fmt: skip
    monkeypatch.setattr(OutputSketch, "estimate", lambda *_: Sensitivity(wrong))

    found = estimate(on)

    assert found.check is not None
    assert found.check.out_of_order
    assert set(found.check.out_of_order) <= set(found.check.repaired)
    assert found.check.agreement is not None
    assert found.check.agreement < AGREEMENT


def test_predictions_that_are_far_too_dear_are_told() -> None:
    """They are not mended: the solver only forgoes something."""
    on = asked(Blocked(lambda x: x))
    table = estimate(on, "measured").table
    wrong = table.values.copy()
    wrong[1] *= 1000

    found = spot_check(on, replace(table, values=wrong))

    assert found.off == ()
    assert any("50 x above the measurement at b: they may get more" in s for s in found.sentences)


def test_what_is_above_as_on_published_networks_is_no_alarm() -> None:
    """ResNet-20 has cells that are 31 times above, where the sketch is right."""
    on = asked(Blocked(lambda x: x))
    table = estimate(on, "measured").table
    wrong = table.values.copy()
    wrong[1] *= 31

    found = spot_check(on, replace(table, values=wrong))

    assert not any(cell.is_dear for cell in found.cells)


MEASURING = {"measured", "pairwise", "decoupled"}


@pytest.mark.parametrize("name", sorted({*ESTIMATORS.names()} - MEASURING - {"auto"}))
def test_every_explicit_estimator_is_checked(name: str) -> None:
    """Whoever gives nothing for a layer, in whatever unit, is told by a search."""
    model, data = Blocked(BETWEEN["round"]).eval(), examples(64)
    on, task = asked(model, data), mpq.Task(model, data, candidates=("w2", "w4", "w8"))
    is_blind = not estimate(on, name).table.values[0].any()

    check = mpq.search(task, ["effective_bits=5"], sensitivity=name).spot_check

    assert check is not None
    assert ("a" in check.no_gradient) == is_blind
    if is_blind:
        assert any("no gradient reaches a (" in s and "--sensitivity" in s for s in check.sentences)
    assert len(check.cells) > 0


def test_the_check_has_a_bar_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that of the estimator it uses, which would read as a measurement of one layer."""
    labels: list[str] = []
    monkeypatch.setattr(tiles, "track", _noting(labels))

    on = asked(Blocked(lambda x: x))
    spot_check(on, estimate(on, "fisher").table)

    assert set(labels) == {"spot check"}


def _noting(labels: list[str]) -> Callable[..., Any]:
    def track(items: Any, what: str, total: int | None = None) -> Any:
        labels.append(what)
        return items

    return track
