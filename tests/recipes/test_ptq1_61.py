"""PTQ1.61: which columns of a layer have 4 bits, by a reference of a few lines."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq

ROWS, INPUTS = 24, 20


def net() -> nn.Sequential:
    """One layer, some of whose columns are larger than others."""
    torch.manual_seed(3)
    layer = nn.Linear(INPUTS, ROWS, bias=False)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(INPUTS) + 0.5)
    return nn.Sequential(layer).eval()


def data() -> Iterator[Tensor]:
    """Inputs one at a time, so that no error makes good another's; some are much larger."""
    yield torch.diag(torch.linspace(0.2, 3, INPUTS)[torch.randperm(INPUTS)]).repeat(2, 1)


def salient(count: int) -> set[int]:
    """The columns that gain most by 4 bits."""
    w = net().get_parameter("0.weight").detach().double().numpy()
    size = next(data()).square().mean(0).double().numpy()
    counts = size / size.mean() + 0.01
    signs = (w - np.sign(w) * np.abs(w).mean(1, keepdims=True)) ** 2
    whole = np.maximum(w.max(1) / 7, -w.min(1) / 8)[:, None]
    steps = [whole * share for share in np.linspace(0.5, 1, 51)]
    tried = [(w - step * np.clip(np.rint(w / step), -8, 7)) ** 2 for step in steps]
    four = np.min([errors.sum(1) for errors in tried], axis=0)
    lost = signs * counts
    by_sign = (signs.sum(1, keepdims=True) * lost / lost.sum(1, keepdims=True)).sum(0)
    by_four = four.sum() * counts / counts.sum()
    return {int(column) for column in np.argsort(by_four - by_sign)[:count]}


@pytest.mark.parametrize("count", [3, 4, 8])
def test_columns_of_one_layer(count: int) -> None:
    """As many as the limit holds, and those that matter (gradients, which the reference leaves out,
    change no order here).
    """
    torch.manual_seed(0)
    task = mpq.Task(net(), list(data()), list(data()), rounding="gptq")
    # Codes, a scale of each row and a factor of it, the factor of the layer, names of columns.
    limit = ROWS * (INPUTS + 3 * count + 32 + 4) + 32 + INPUTS

    found = mpq.search(
        task, {"effective_bits": limit / (ROWS * INPUTS)}, recipe="ptq1.61", keep=["rounding"]
    )

    weight = found.assignment.precisions["0"].weight
    assert weight.channels is not None
    assert [number.bits for number in weight.channels.numbers] == [1, 4]
    four = {int(i) for i in np.flatnonzero(weight.channels.columns == 1)}
    assert four == salient(count)
