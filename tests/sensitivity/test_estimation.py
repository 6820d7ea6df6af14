"""What estimators look at: formats once, candidates again, tables with names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mpq.errors import InputError, ModelError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation

CANDIDATES = tuple(map(Precision.parse, ("w4a8d", "w4", "fp32", "w8a8d")))


def two_layers(candidates: tuple[Precision, ...] = CANDIDATES) -> Estimation:
    """A small network and ten examples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    data = Calibration([torch.randn(10, 4)])
    return Estimation(Network.of(model, data), data, Quantizer(ActivationRanges({})), candidates)


def test_each_format_is_worked_out_once_and_given_to_all_its_candidates() -> None:
    """Two of four candidates round weights alike, and two round inputs alike."""
    on = two_layers()

    weights, inputs = on.weights, on.inputs

    assert weights.formats == (CANDIDATES[0].weight, ORIGINAL.weight, CANDIDATES[3].weight)
    assert inputs.formats == (CANDIDATES[0].activation, ORIGINAL.activation)
    assert weights.by_candidate(np.array([[1.0, 2.0, 3.0]])).tolist() == [[1.0, 1.0, 2.0, 3.0]]
    assert inputs.by_candidate(torch.tensor([[5.0, 6.0]])).tolist() == [[5.0, 6.0, 6.0, 5.0]]


def test_formats_that_change_nothing_are_not_tried() -> None:
    """The original precision, and inputs that stay as they are."""
    on, weight_only = two_layers(), two_layers((CANDIDATES[1], ORIGINAL))

    assert (on.shape, on.tried) == ((2, 4), (0, 1, 3))
    assert on.inputs.rounding == ((0, CANDIDATES[0].activation),)
    assert not weight_only.inputs.is_rounding


def test_a_table_has_the_metrics_unit_unless_it_has_its_own() -> None:
    """Layers and precisions are named; what is not finite is a model's failure."""
    on, values = two_layers(), np.arange(8.0).reshape(2, 4)

    table = on.table(values, "mine")

    assert (table.name, table.unit, table.layers) == ("mine", "nats", ("0", "2"))
    assert table.precisions == CANDIDATES
    assert on.table(values, "mine", "relative").unit == "relative"
    values[1, 2] = np.nan
    with pytest.raises(ModelError, match="mine: layer '2' at fp32 costs nan; gradients"):
        on.table(values, "mine")


def test_a_journal_belongs_to_one_question(tmp_path: Path) -> None:
    """Other candidates are another question; without a path there is no journal."""
    path = str(tmp_path / "kept.jsonl")
    journal = two_layers().journal(path, {"estimator": "mine"})
    assert journal is not None
    journal.add("a row", {"values": [1.0]})

    again = two_layers().journal(path, {"estimator": "mine"})

    assert again is not None
    assert "a row" in again
    assert two_layers().journal("", {}) is None
    with pytest.raises(InputError):
        two_layers(CANDIDATES[:2]).journal(path, {"estimator": "mine"})
