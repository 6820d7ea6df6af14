"""Prices of parts along rows whose codes fit data."""

import numpy as np
import pytest
import torch
from torch import nn

import mpq
from mpq.problem.split import Split
from mpq.rounding.column_losses import column_losses
from mpq.workflows.coupled_rows import shares_of_inputs
from mpq.workflows.setup import Prepared
from mpq.workflows.shown_examples import Shown

CANDIDATES = ["w2g4", "w4g4", "w8t", "mxfp4", "w16"]


@pytest.mark.parametrize("spelled", ["columns:8", "groups"])
def test_prices_are_shared_out_weight_by_weight(spelled: str) -> None:
    """Against a sum over weights; a last group is short, and some formats have no parts."""
    torch.manual_seed(0)
    net, data = nn.Sequential(nn.Linear(10, 3)).eval(), [torch.randn(8, 10) for _ in range(2)]
    task = mpq.Task(net, data, candidates=CANDIDATES, rounding="gptq", split=spelled)
    prepared, split = Prepared.of(task), Split.parse(spelled)
    assert split is not None
    on = prepared.asked
    (moments,) = Shown.all_of(on, task.seed).moments()
    counted = column_losses(moments.values["0"])[0].numpy()
    losses = np.random.default_rng(0).uniform(1, 2, size=(3, len(CANDIDATES)))
    is_groups, size = spelled == "groups", 4 if spelled == "groups" else 8
    count = -(-10 // size)
    expected = np.zeros((3 * count if is_groups else count, 2))
    for column in range(2):
        scale = on.quantizer.stored["0", on.candidates[column].weight].scale.astype(np.float64)
        for row in range(3):
            own = [scale[row, k // 4] ** 2 * counted[k] for k in range(10)]
            for k in range(10):
                unit = k // size + (row * count if is_groups else 0)
                expected[unit, column] += losses[row, column] * own[k] / sum(own)

    found = shares_of_inputs(prepared, split, {"0": losses}, {"0": size})["0"]

    np.testing.assert_allclose(found[:, :2], expected, rtol=1e-9)
    np.testing.assert_allclose(found.sum(axis=0), losses.sum(axis=0), rtol=1e-9)
